-- Starts a value's life of ARGV[2] milliseconds anew, unless somebody did so since it fell below
-- ARGV[3]: each write would push an invalidation to every client that tracks the key. A value that
-- was lost meanwhile is stored again. The others hear of it in the channel ARGV[4].
local left = redis.call('PTTL', KEYS[1])
if left == -2 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  redis.pcall('PUBLISH', ARGV[4], KEYS[1] .. ' ' .. ARGV[1])
elseif left < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  local value = redis.pcall('GET', KEYS[1])
  if type(value) == 'string' then
    redis.pcall('PUBLISH', ARGV[4], KEYS[1] .. ' ' .. value)
  end
end
return redis.status_reply('OK')
