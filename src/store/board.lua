-- Exchanges with the board of replicas. Fields of the hash: `v` is the version, `n:<name>` is
-- `<stamp> <expiry, 0: none> <value>`, `r:<replica>` is `<expiry> <load>`. Times are milliseconds
-- of this Redis.
--
-- ARGV[1] is the replica, ARGV[2] its life in milliseconds (0: it leaves), ARGV[3] its load,
-- ARGV[4] the version that it has. Each note takes four more arguments: name, value, life in
-- milliseconds (0: no expiry) and stamp (0: a new note). A new note replaces an older one, but
-- never shortens the life of an equal value. A note that a board has lost keeps its stamp, and
-- replaces only an older one. An empty value removes a note.
--
-- Fields and values that do not read like this belong to a newer version, and stay as they are. So
-- do numbers from 2^53 on, which Lua's numbers do not tell apart. Only a `v` without a number is
-- written anew, because no replica could follow it.
--
-- Returns the time, the version, all notes if the versions differ (name, value, life, stamp), and
-- the loads of the other replicas.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local board, replica = KEYS[1], 'r:' .. ARGV[1]
local largest = 2 ^ 53 - 1

local function whole(digits)
  local number = tonumber(digits)
  return number and number <= largest and number or nil
end

local version, notes, loads = 0, {}, {}
local changed = false
local fields = redis.call('HGETALL', board)
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'v' then
    version = whole(string.match(value, '^%d+'))
    if not version then
      version, changed = 0, true
    end
  elseif string.sub(name, 1, 2) == 'n:' then
    local stamp, expiry, text = string.match(value, '^(%d+) (%d+) (.*)$')
    stamp, expiry = whole(stamp), whole(expiry)
    if not stamp or not expiry then
      -- A newer version's note.
    elseif expiry > 0 and expiry <= now then
      redis.call('HDEL', board, name)
      changed = true
    else
      notes[string.sub(name, 3)] = { stamp = stamp, expiry = expiry, text = text }
    end
  elseif string.sub(name, 1, 2) == 'r:' and name ~= replica then
    local expiry, load = string.match(value, '^(%d+) (.*)$')
    expiry = whole(expiry)
    if expiry and expiry < now then
      redis.call('HDEL', board, name)
    elseif expiry then
      table.insert(loads, load)
    end
  end
end

for i = 5, #ARGV, 4 do
  local name, text, life, stamp = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local old = notes[name]
  local expiry = life > 0 and math.min(now + life, largest) or 0
  if stamp == 0 then
    stamp = math.min(math.max(now, old and old.stamp + 1 or 0), largest)
    if old and old.text == text and expiry > 0 and (old.expiry == 0 or old.expiry > expiry) then
      expiry = old.expiry
    end
  elseif old and old.stamp >= stamp then
    text = nil
  end
  if text == '' then
    redis.call('HDEL', board, 'n:' .. name)
    notes[name] = nil
    changed = true
  elseif text then
    redis.call('HSET', board, 'n:' .. name, string.format('%d %d %s', stamp, expiry, text))
    notes[name] = { stamp = stamp, expiry = expiry, text = text }
    changed = true
  end
end

if changed then
  version = math.max(version + 1, now)
  redis.call('HSET', board, 'v', string.format('%d', version))
end
local life = tonumber(ARGV[2])
if life == 0 then
  redis.call('HDEL', board, replica)
else
  redis.call('HSET', board, replica, string.format('%d %s', now + life, ARGV[3]))
end

local told = {}
if version ~= tonumber(ARGV[4]) then
  for name, note in pairs(notes) do
    local left = note.expiry > 0 and note.expiry - now or 0
    local life, stamp = string.format('%d', left), string.format('%d', note.stamp)
    for _, part in ipairs({ name, note.text, life, stamp }) do
      table.insert(told, part)
    end
  end
end
return { string.format('%d', now), string.format('%d', version), told, loads }
