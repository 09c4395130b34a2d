-- say: messages on one ordered channel, each once by its event id: offset, bounded log and PUBLISH in one step.
-- KEYS 1 meta  2 log  3 seen   ARGV 1 pub/sub channel  2 name of the channel  3 chance  4 most entries kept
-- 5 life of a quiet channel (s), then (event id, payload)*
-- Answers the messages' offsets; 0 where an event was said before. A server that restarted begins a new epoch (see load).
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'run')
if meta[2] ~= run then
  meta[1] = string.sub(run, 1, 8) .. '.' .. ARGV[3]
  redis.call('HSET', KEYS[1], 'epoch', meta[1], 'run', run)
end
local offsets = {}
for i = 6, #ARGV, 2 do
  local offset = 0
  if not redis.call('ZSCORE', KEYS[3], ARGV[i]) then
    offset = redis.call('HINCRBY', KEYS[1], 'offset', 1)
    redis.call('ZADD', KEYS[3], offset, ARGV[i])
    redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[4], offset .. '-0', 'd', ARGV[i + 1])
    redis.call('SPUBLISH', ARGV[1], ARGV[2] .. '\31' .. meta[1] .. ' ' .. offset .. ' ' .. ARGV[i + 1])
  end
  offsets[#offsets + 1] = offset
end
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - 4 * tonumber(ARGV[4]))
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[5]) end
return offsets
