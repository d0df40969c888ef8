-- Compare-and-set: stores ARGV[2] for ARGV[3] milliseconds where ARGV[1] or nothing is stored.
-- Answers nil when done, otherwise what is stored. A value carries its key and epoch, so comparing
-- values compares both. The others hear of it in the channel ARGV[4]. Should that be refused, what
-- is stored stays stored.
local stored = redis.call('GET', KEYS[1])
if stored and stored ~= ARGV[1] then
  return stored
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.pcall('PUBLISH', ARGV[4], KEYS[1] .. ' ' .. ARGV[2])
return false
