-- commit: make one batch (or one tick that says something) of an area true, if the caller is its owner and this is number n + 1.
-- KEYS  1 lease  2 ctl  3 states  4 pos  5 eta  6 geo  7 out  8 bytes  9 open
-- ARGV  1 token  2 n  3 cursor  4 out blob ('' = none)  5 live channel  6 live blob
--       7 states: how many values follow   8 states dropped   9 positions   10 forecasts   11 forecasts dropped   12 places   13 gone
--       14 incidents open   15 incidents closed
--       then the values: (key blob)*  key*  (bus blob)*  (bus blob)*  bus*  (lon lat bus)*  bus*  (id blob)*  id*
-- Answers OK; LEASE: not the owner, forget everything; DONE: this very batch is in already (its answer was lost);
-- STALE: the caller's memory is not this server's (another number, or a server that restarted), load again.
-- Lua rolls nothing back, so the checks come first, and before the rest GEOADD, which can fail on its values.
--[token]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'LEASE' end
--[/token]
--[number]
local ctl = redis.call('HMGET', KEYS[2], 'n', 'by', 'run')
if ctl[1] == ARGV[2] and ctl[2] == ARGV[1] then return 'DONE' end
if tonumber(ctl[1] or 0) + 1 ~= tonumber(ARGV[2]) then return 'STALE' end
-- A server that restarted may have lost its tail, so what follows belongs to a new epoch. Reading its id costs 6 us.
if ctl[3] ~= string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') then return 'STALE' end
--[/number]

local first = {}
local at = 16
for part = 7, 15 do
  first[part] = at
  at = at + tonumber(ARGV[part])
end
first[16] = at

-- 3,996 values a call: unpack ends at about 8,000, and pairs and triples must stay whole
local function spread(command, key, part)
  for i = first[part], first[part + 1] - 1, 3996 do
    redis.call(command, key, unpack(ARGV, i, math.min(i + 3995, first[part + 1] - 1)))
  end
end

spread('GEOADD', KEYS[6], 12)
spread('HSET', KEYS[3], 7)
spread('HDEL', KEYS[3], 8)
spread('HSET', KEYS[4], 9)
spread('HSET', KEYS[5], 10)
spread('HDEL', KEYS[5], 11)
spread('HDEL', KEYS[4], 13)
spread('HDEL', KEYS[5], 13)
spread('ZREM', KEYS[6], 13)
spread('HSET', KEYS[9], 14)
spread('HDEL', KEYS[9], 15)
if ARGV[4] ~= '' then
  local total = redis.call('HINCRBY', KEYS[8], 'out', #ARGV[4])
  redis.call('XADD', KEYS[7], '*', 'b', ARGV[4], 't', total)
end
redis.call('HSET', KEYS[2], 'n', ARGV[2], 'cur', ARGV[3], 'by', ARGV[1])
redis.call('SPUBLISH', ARGV[5], ARGV[6])
return 'OK'
