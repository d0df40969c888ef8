-- Stores a first binding, or a binding made while the store was away. Stores ARGV[1], whose epoch
-- is ARGV[2], for ARGV[3] milliseconds, if nothing or a lower epoch is stored. Returns nil when
-- done, otherwise the value that stays. The epoch is a value's second word. A newer version wrote
-- a value without one, so that value stays. Announces the value in the channel ARGV[4]. A refused
-- announcement undoes nothing.
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
