-- load: number, cursor, epoch, states and open incidents of an area, of one instant, for its owner.
-- KEYS lease, ctl, states, open   ARGV token
-- Answers {n, cursor, epoch, [key, blob, ...], [blob, ...]}, or false where the lease is not ours.
-- The epoch lasts while one server runs on: after a restart the last numbers may have been lost and be given out again, so a new
-- one begins, made of the server's run id and the owner's token (whose number is stored and whose chance part never repeats).
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local ctl = redis.call('HMGET', KEYS[2], 'n', 'cur', 'epoch', 'run')
if ctl[4] ~= run then
  ctl[3] = string.sub(run, 1, 8) .. '.' .. ARGV[1]
  redis.call('HSET', KEYS[2], 'epoch', ctl[3], 'run', run)
end
return {ctl[1] or '0', ctl[2] or '0-0', ctl[3], redis.call('HGETALL', KEYS[3]), redis.call('HVALS', KEYS[4])}
