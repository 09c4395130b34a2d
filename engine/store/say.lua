-- say: one message on an ordered channel, once by its event id: offset, bounded log and PUBLISH in one step.
-- KEYS 1 meta  2 log  3 seen   ARGV 1 event id  2 payload  3 pub/sub channel  4 chance  5 most entries kept  6 life of a quiet channel (s)
-- Answers the message's offset, or 0 where this event was said before. A server that restarted begins a new epoch (see load).
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'run')
if meta[2] ~= run then
  meta[1] = string.sub(run, 1, 8) .. '.' .. ARGV[4]
  redis.call('HSET', KEYS[1], 'epoch', meta[1], 'run', run)
end
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
local offset = redis.call('HINCRBY', KEYS[1], 'offset', 1)
redis.call('ZADD', KEYS[3], offset, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - 4 * tonumber(ARGV[5]))
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], offset .. '-0', 'd', ARGV[2])
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
redis.call('PUBLISH', ARGV[3], meta[1] .. ' ' .. offset .. ' ' .. ARGV[2])
return offset
