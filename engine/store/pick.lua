-- pick: seats of one trip instance for one owner, all or none, and their messages on the trip's seat channel, in one step.
-- KEYS 1 picks  2 meta  3 log (of the channel)
-- ARGV 1 msgpack of {now (ms), until (ms), owner, first place, last place, the ride as JSON text ("from":..,"to":..), pub/sub channel, chance,
--        most entries kept, life of a quiet channel (s), labels, the channel's name}: one argument, for packing eleven costs the caller more than the call
-- Answers the labels that others are choosing for some of these legs (nothing is written), or the offset of the last message.
-- A seat's field is a msgpack list of {first place, last place, until, owner, ride}; what is over goes as it is read. Picking again with
-- the same owner moves the pick: a seat's earlier legs of this owner are let go. Offsets and epochs as in say.
local asked = cmsgpack.unpack(ARGV[1])
local now, ends, owner, from, to, ride, channel = asked[1], asked[2], asked[3], asked[4], asked[5], asked[6], asked[7]
local labels, taken, left, let_go = asked[11], {}, {}, {}
local till = string.format('%.0f', ends)
local found = redis.call('HMGET', KEYS[1], unpack(labels))
for i, label in ipairs(labels) do
  local others, clash = {}, false
  for _, pick in ipairs(found[i] and cmsgpack.unpack(found[i]) or {}) do
    if pick[3] > now then
      if pick[4] == owner then
        if pick[5] ~= ride then let_go[#let_go + 1] = {label, pick[5]} end
      else
        others[#others + 1] = pick
        clash = clash or (pick[1] < to and from < pick[2])
      end
    end
  end
  if clash then taken[#taken + 1] = label end
  others[#others + 1] = {from, to, ends, owner, ride}
  left[#left + 1] = label
  left[#left + 1] = cmsgpack.pack(others)
end
if #taken > 0 then return taken end
redis.call('HSET', KEYS[1], unpack(left))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ends - now))

local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local meta = redis.call('HMGET', KEYS[2], 'epoch', 'run')
if meta[2] ~= run then
  meta[1] = string.sub(run, 1, 8) .. '.' .. asked[8]
  redis.call('HSET', KEYS[2], 'epoch', meta[1], 'run', run)
end
local last = redis.call('HINCRBY', KEYS[2], 'offset', #labels + #let_go)
local offset = last - #labels - #let_go
local first, said = offset + 1, {}
local function say(label, state, legs, ends)
  offset = offset + 1
  local payload = '{"t":"seat","d":{"seat":"' .. label .. '","state":"' .. state .. '",' .. legs .. ',"untilMs":' .. ends .. '}}'
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', asked[9], offset .. '-0', 'd', payload)
  said[#said + 1] = payload
end
for _, gone in ipairs(let_go) do say(gone[1], 'FREE', gone[2], 'null') end
for _, label in ipairs(labels) do say(label, 'PICKED', ride, till) end
redis.call('SPUBLISH', channel, asked[12] .. '\31' .. meta[1] .. ' ' .. first .. ' ' .. table.concat(said, '\30'))
redis.call('EXPIRE', KEYS[2], asked[10])
redis.call('EXPIRE', KEYS[3], asked[10])
return last
