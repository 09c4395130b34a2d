-- append: one entry of accepted fixes (or of a person's word) into an area's ingest stream, unless a stream of the area is over its byte cap.
-- KEYS in, bytes   ARGV payload, cap of in (bytes), cap of out (bytes), field: f or w
-- Every entry carries the running total `t` of bytes ever added, so what a stream holds is (newest total - total trimmed), exactly, and
-- nobody has to ask MEMORY USAGE, which was off by a factor of four. Answers the entry's id, or 'IN' / 'OUT': the stream that is full.
local size = #ARGV[1]
local held = redis.call('HMGET', KEYS[2], 'in', 'in_gone', 'out', 'out_gone')
if (held[1] or 0) - (held[2] or 0) + size > tonumber(ARGV[2]) then return 'IN' end
if (held[3] or 0) - (held[4] or 0) > tonumber(ARGV[3]) then return 'OUT' end
local total = redis.call('HINCRBY', KEYS[2], 'in', size)
return redis.call('XADD', KEYS[1], '*', ARGV[4], ARGV[1], 't', total)
