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
