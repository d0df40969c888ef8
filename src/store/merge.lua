-- Binds for the first time, and brings in what was bound while the store was away: stores ARGV[1],
-- whose epoch is ARGV[2], for ARGV[3] milliseconds where nothing or a lower epoch is stored.
-- Answers nil when done, otherwise what stays. An epoch is a value's second word; a value without
-- one was written by a newer version, which knows better. The others hear of it in the channel
-- ARGV[4]. Should that be refused, what is stored stays stored.
local stored = redis.call('GET', KEYS[1])
if stored then
  local epoch = tonumber(string.match(stored, '^%S+ (%d+)'))
  if not epoch or epoch >= tonumber(ARGV[2]) then
    return stored
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.pcall('PUBLISH', ARGV[4], KEYS[1] .. ' ' .. ARGV[1])
return false
