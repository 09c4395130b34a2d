-- renew: lengthen a lease that is still ours, or give it back.
-- KEYS lease   ARGV token, life of the lease (ms; 0 = give it back)   Answers 1, or 0 where the lease is not ours.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
