-- The ordinal of a key set's fingerprint ARGV[1]: 1 for the first ever seen, one more for each new one.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then
  return tonumber(known)
end
local next = redis.call('HLEN', KEYS[1]) + 1
redis.call('HSET', KEYS[1], ARGV[1], next)
return next
