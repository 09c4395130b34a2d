-- unpick: an owner lets go of all its picks on one trip instance, or of the seats named; said on the trip's seat channel unless it is told
-- not to (the seats are held now: what the hold says comes after it).
-- KEYS 1 picks  2 meta  3 log (of the channel)
-- ARGV 1 now (ms)  2 owner  3 '1': say it  4 pub/sub channel  5 name of the channel  6 chance  7 most entries kept
--      8 life of a quiet channel (s)  9.. labels
-- Answers how many picks went that were not over.
local now, owner = tonumber(ARGV[1]), ARGV[2]
local only = {}
for i = 9, #ARGV do only[ARGV[i]] = true end
local all, gone = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local label, others, changed = all[i], {}, false
  if #ARGV < 9 or only[label] then
    for _, pick in ipairs(cmsgpack.unpack(all[i + 1])) do
      local over = pick[3] <= now
      if pick[4] == owner or over then
        changed = true
        if not over then gone[#gone + 1] = {label, pick[5]} end
      else
        others[#others + 1] = pick
      end
    end
  end
  if changed and #others == 0 then redis.call('HDEL', KEYS[1], label)
  elseif changed then redis.call('HSET', KEYS[1], label, cmsgpack.pack(others)) end
end
if #gone == 0 or ARGV[3] ~= '1' then return #gone end

local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'run')
if meta[2] ~= run then
  meta[1] = string.sub(run, 1, 8) .. '.' .. ARGV[6]
  redis.call('HSET', KEYS[2], 'epoch', meta[1], 'run', run)
end
local offset = redis.call('HINCRBY', KEYS[2], 'offset', #gone) - #gone
local first, said = offset + 1, {}
for _, pick in ipairs(gone) do
  offset = offset + 1
  local payload = '{"t":"seat","d":{"seat":"' .. pick[1] .. '","state":"FREE",' .. pick[2] .. ',"untilMs":null}}'
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], offset .. '-0', 'd', payload)
  said[#said + 1] = payload
end
redis.call('SPUBLISH', ARGV[4], ARGV[5] .. '\31' .. meta[1] .. ' ' .. first .. ' ' .. table.concat(said, '\30'))
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('EXPIRE', KEYS[3], ARGV[8])
return #gone
