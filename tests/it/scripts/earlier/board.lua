local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local board, replica = KEYS[1], 'r:' .. ARGV[1]

local version, notes, loads = 0, {}, {}
local changed = false
local fields = redis.call('HGETALL', board)
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'v' then
    version = tonumber(value)
  elseif string.sub(name, 1, 2) == 'n:' then
    local stamp, expiry, text = string.match(value, '^(%d+) (%d+) (.*)$')
    stamp, expiry = tonumber(stamp), tonumber(expiry)
    if expiry > 0 and expiry <= now then
      redis.call('HDEL', board, name)
      changed = true
    else
      notes[string.sub(name, 3)] = { stamp = stamp, expiry = expiry, text = text }
    end
  elseif name ~= replica then
    local expiry, load = string.match(value, '^(%d+) (.*)$')
    if tonumber(expiry) < now then
      redis.call('HDEL', board, name)
    else
      table.insert(loads, load)
    end
  end
end

for i = 5, #ARGV, 4 do
  local name, text, life, stamp = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local old = notes[name]
  local expiry = life > 0 and now + life or 0
  if stamp == 0 then
    stamp = math.max(now, old and old.stamp + 1 or 0)
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
    for _, part in ipairs({
      name, note.text, string.format('%d', left), string.format('%d', note.stamp)
    }) do
      table.insert(told, part)
    end
  end
end
return { string.format('%d', now), string.format('%d', version), told, loads }
