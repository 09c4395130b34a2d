-- queue: a place at the end of a trip's queue: who joins is let in one interval after who joined before, or now.
-- KEYS queue of the trip   ARGV now (ms), people let in a second, life of a quiet queue (ms)
-- Answers number, let in at (ms).
local now, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local number = redis.call('HINCRBY', KEYS[1], 'n', 1)
local at = math.max(now, tonumber(redis.call('HGET', KEYS[1], 'next') or '0'))
redis.call('HSET', KEYS[1], 'next', string.format('%.3f', at + 1000 / rate))
redis.call('PEXPIRE', KEYS[1], math.ceil(at - now) + tonumber(ARGV[3]))
return {number, math.ceil(at)}
