-- trim: drop what a stream holds below an id, and keep the books of its bytes (see append).
-- KEYS stream, bytes   ARGV id, 'in' or 'out'   Answers the bytes that the stream still holds.
-- XTRIM ~ takes whole nodes only and at most 10,000 entries a call: so in a loop, bounded; the rest comes at the next tick.
for _ = 1, 10 do
  if redis.call('XTRIM', KEYS[1], 'MINID', '~', ARGV[1]) == 0 then break end
end
local total = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or 0)
local held = 0
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if oldest then
  local fields = oldest[2] -- payload's name, payload, 't', running total with this payload in it
  held = total - tonumber(fields[4]) + #fields[2]
end
redis.call('HSET', KEYS[2], ARGV[2] .. '_gone', total - held)
return held
