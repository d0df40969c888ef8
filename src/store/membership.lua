-- Exchanges membership. Fields of the hash: `r:<replica>` is `<expiry in milliseconds>
-- <fingerprint>`, `s:<fingerprint>` is `<ordinal> <tags of its keys>`.
--
-- ARGV[1] is the replica, ARGV[2] the fingerprint of its set of keys, ARGV[3] the tags of the set.
-- ARGV[4] is the last known ordinal of the set, ARGV[5] the replica's life in milliseconds (0: it
-- leaves). ARGV[6] is 1 if other live replicas may not have had the time to report, so that their
-- absence proves nothing. Returns the ordinal of the set, and the tags of every other set that a
-- live replica has loaded.
--
-- Fields and values that do not read like this belong to a newer version, and stay as they are. So
-- do ordinals from 2^32 - 1 on, and times from 2^53 on.
local replica, fingerprint, life = 'r:' .. ARGV[1], ARGV[2], tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function below(limit, digits)
  local number = tonumber(digits)
  return number and number < limit and number or nil
end

local sets, newest, live = {}, 0, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if string.sub(name, 1, 2) == 's:' then
    local ordinal, tags = string.match(value, '^(%d+) ?(.*)$')
    ordinal = below(2 ^ 32 - 1, ordinal)
    if ordinal then
      sets[string.sub(name, 3)] = { ordinal = ordinal, tags = tags }
      newest = math.max(newest, ordinal)
    end
  elseif string.sub(name, 1, 2) == 'r:' and name ~= replica then
    -- A newer version may write more words.
    local expiry, print = string.match(value, '^(%d+) (%S*)')
    expiry = below(2 ^ 53, expiry)
    if expiry and expiry < now then
      redis.call('HDEL', KEYS[1], name)
    elseif expiry and print ~= fingerprint then
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
    -- Long unused: if the set returns, it counts as new.
    redis.call('HDEL', KEYS[1], 's:' .. print)
  end
end
return { own.ordinal, others }
