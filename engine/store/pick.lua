-- pick: seats of one trip instance for one owner, all or none, and their messages on the trip's seat channel, in one step.
-- KEYS 1 picks  2 meta  3 log (of the channel)
-- ARGV 1 now (ms)  2 until (ms)  3 owner  4 first place  5 last place  6 the ride as JSON text ("from":..,"to":..)  7 pub/sub channel
--      8 chance  9 most entries kept  10 life of a quiet channel (s)  11.. labels
-- Answers the labels that others are choosing for some of these legs (nothing is written), or the offset of the last message.
-- A seat's field is a msgpack list of {first place, last place, until, owner, ride}; what is over goes as it is read. Picking again with
-- the same owner moves the pick: a seat's earlier legs of this owner are let go. Offsets and epochs as in say.
local now, from, to = tonumber(ARGV[1]), tonumber(ARGV[4]), tonumber(ARGV[5])
local owner, ride = ARGV[3], ARGV[6]
local labels, taken, left, let_go = {}, {}, {}, {}
for i = 11, #ARGV do labels[#labels + 1] = ARGV[i] end
local found = redis.call('HMGET', KEYS[1], unpack(labels))
for i, label in ipairs(labels) do
  local others, clash = {}, false
  for _, pick in ipairs(found[i] and cmsgpack.unpack(found[i]) or {}) do
    if tonumber(pick[3]) > now then
      if pick[4] == owner then
        if pick[5] ~= ride then let_go[#let_go + 1] = {label, pick[5]} end
      else
        others[#others + 1] = pick
        clash = clash or (pick[1] < to and from < pick[2])
      end
    end
  end
  if clash then taken[#taken + 1] = label end
  others[#others + 1] = {from, to, ARGV[2], owner, ride}
  left[#left + 1] = label
  left[#left + 1] = cmsgpack.pack(others)
end
if #taken > 0 then return taken end
redis.call('HSET', KEYS[1], unpack(left))
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[2]) - now)

local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'run')
if meta[2] ~= run then
  meta[1] = string.sub(run, 1, 8) .. '.' .. ARGV[8]
  redis.call('HSET', KEYS[2], 'epoch', meta[1], 'run', run)
end
local last = redis.call('HINCRBY', KEYS[2], 'offset', #labels + #let_go)
local offset = last - #labels - #let_go
local function say(label, state, legs, ends)
  offset = offset + 1
  local payload = '{"t":"seat","d":{"seat":"' .. label .. '","state":"' .. state .. '",' .. legs .. ',"untilMs":' .. ends .. '}}'
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[9], offset .. '-0', 'd', payload)
  redis.call('PUBLISH', ARGV[7], meta[1] .. ' ' .. offset .. ' ' .. payload)
end
for _, gone in ipairs(let_go) do say(gone[1], 'FREE', gone[2], 'null') end
for _, label in ipairs(labels) do say(label, 'PICKED', ride, ARGV[2]) end
redis.call('EXPIRE', KEYS[2], ARGV[10])
redis.call('EXPIRE', KEYS[3], ARGV[10])
return last
