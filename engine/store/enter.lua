-- enter: events into the bounded stream that programs read, each time they are said: consumers know them again by their id.
-- KEYS stream   ARGV 1 entries kept, about, then (id, topic, type, partner, event as JSON)*
for i = 2, #ARGV, 5 do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*',
    'id', ARGV[i], 'topic', ARGV[i + 1], 'type', ARGV[i + 2], 'partner', ARGV[i + 3], 'event', ARGV[i + 4])
end
return (#ARGV - 1) / 5
