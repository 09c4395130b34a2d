-- name: loads
-- Of these trip instances those that are sold: seats of the bus, and from which place to which each passenger rides who was scanned aboard.
select i.trip_id, cardinality(m.labels) as seats,
  coalesce((select array_agg(lower(t.legs)) from booking.booking b join ticket.ticket t using (booking_id)
    where b.trip_no = i.trip_no and t.state = 'USED'), '{}') as froms,
  coalesce((select array_agg(upper(t.legs)) from booking.booking b join ticket.ticket t using (booking_id)
    where b.trip_no = i.trip_no and t.state = 'USED'), '{}') as tos
from sale.trip_instance i join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version
where i.trip_id = any ($1)
