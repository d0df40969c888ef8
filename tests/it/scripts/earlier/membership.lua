local replica, fingerprint, life = 'r:' .. ARGV[1], ARGV[2], tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local sets, newest, live = {}, 0, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if string.sub(name, 1, 2) == 's:' then
    local ordinal, tags = string.match(value, '^(%d+) ?(.*)$')
    sets[string.sub(name, 3)] = { ordinal = tonumber(ordinal), tags = tags }
    newest = math.max(newest, tonumber(ordinal))
  elseif name ~= replica then
    local expiry, print = string.match(value, '^(%d+) (.*)$')
    if tonumber(expiry) < now then
      redis.call('HDEL', KEYS[1], name)
    elseif print ~= fingerprint then
      live[print] = true
    end
  end
end
if life == 0 then
  redis.call('HDEL', KEYS[1], replica)
  return { 0, {} }
end

local own = sets[fingerprint]
if not own and tonumber(ARGV[4]) > 0 then
  own = { ordinal = tonumber(ARGV[4]) }
elseif not own or (own.ordinal < newest and not next(live) and ARGV[6] ~= '1') then
  own = { ordinal = newest + 1 }
end
redis.call('HSET', KEYS[1], replica, string.format('%d %s', now + life, fingerprint),
  's:' .. fingerprint, own.ordinal .. ' ' .. ARGV[3])

local others = {}
for print, set in pairs(sets) do
  if live[print] then
    table.insert(others, set.tags)
  elseif print ~= fingerprint and set.ordinal < newest - 32 then
    redis.call('HDEL', KEYS[1], 's:' .. print)
  end
end
return { own.ordinal, others }
