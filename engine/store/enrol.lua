-- enrol: an area becomes known; who listens to the live channels of all areas hears of a new one.
-- KEYS areas (its name is the pub/sub channel's too)   ARGV area   Answers 1 where it is new.
local new = redis.call('SADD', KEYS[1], ARGV[1])
if new == 1 then redis.call('SPUBLISH', KEYS[1], ARGV[1]) end
return new
