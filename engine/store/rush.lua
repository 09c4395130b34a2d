-- rush: hold attempts of one worker are added to those of the others in this second; trips with too many are hot for a while.
-- KEYS hot trips (sorted set: until), attempts of this second (hash)   ARGV now (ms), attempts a second that are too many, ms of calm, then
-- trip, attempts, trip, attempts ...
-- Answers the trips that are hot.
local now, most = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 4, #ARGV, 2 do
  local tried = redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1])
  if tried >= most then redis.call('ZADD', KEYS[1], 'GT', now + tonumber(ARGV[3]), ARGV[i]) end
end
if #ARGV > 3 then redis.call('PEXPIRE', KEYS[2], 5000) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZRANGE', KEYS[1], 0, 999)
