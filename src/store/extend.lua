-- Renews the life of a value to ARGV[2] milliseconds, unless its life is still at least ARGV[3].
-- Each write would push an invalidation to every client that tracks the key. Stores ARGV[1] if the
-- value was lost. Announces a renewed or restored value in the channel ARGV[4].
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
