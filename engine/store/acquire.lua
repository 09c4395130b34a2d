-- acquire: take an area's lease where nobody holds it.
-- KEYS lease, fence   ARGV chance, life of the lease (ms)
-- Answers the token, number:chance, or false. The number may fall back with a lost AOF tail; the chance part may not repeat.
if redis.call('EXISTS', KEYS[1]) == 1 then return false end
local token = redis.call('INCR', KEYS[2]) .. ':' .. ARGV[1]
redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
return token
