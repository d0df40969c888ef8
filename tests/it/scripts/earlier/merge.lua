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
