-- Compare-and-set: stores ARGV[2] for ARGV[3] milliseconds, if ARGV[1] or nothing is stored.
-- Returns nil when done, otherwise the stored value. A value contains its key and epoch, so
-- comparing values compares both. Announces the value in the channel ARGV[4]. A refused
-- announcement undoes nothing.
local stored = redis.call('GET', KEYS[1])
if stored and stored ~= ARGV[1] then
  return stored
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.pcall('PUBLISH', ARGV[4], KEYS[1] .. ' ' .. ARGV[2])
return false
