-- name: keys
-- Every ticket key there ever was, by id.
select key_id, alg, public_key, created_at, retired_at from ticket.key order by key_id

-- name: lock_keys
-- One at a time makes or retires a key.
select pg_advisory_xact_lock(hashtextextended('ticket.key', 0))

-- name: retire_keys
-- They sign no more; what they signed stays good.
update ticket.key set retired_at = clock_timestamp() where retired_at is null

-- name: add_key
-- The next key: from now on it signs.
insert into ticket.key (key_id, alg, public_key) values ($1, $2, $3)

-- name: sign_with
-- Tickets that nobody has read yet, or whose key can sign no more, get this key.
update ticket.ticket set key_id = $2 where ticket_id = any($1::uuid[])

-- name: shown
-- A booking as people see it, by its reference or by the id of one of its rows.
select booking.shown($1, $2::uuid)

-- name: locked
-- The rows of a booking, trips and rows locked: the beginning of every edge.
select booking_id::text, lead_id::text, partner_id, trip_no, map_version, seats, lower(legs) as from_place, upper(legs) as to_place, state, version,
  reference
from booking.locked($1::uuid)

-- name: issue
-- Tickets for these bookings' passengers that have none.
select ticket.issue($1::uuid[], $2, $3)

-- name: tickets_of_booking
-- The tickets in force of all rows of a booking, with what the paper says.
select t.ticket_id::text, t.booking_id::text, t.seat, t.printed_seat, t.trip_no, lower(t.legs) as from_place, upper(t.legs) as to_place, t.version,
  t.key_id, t.state, t.valid_from, t.valid_to, t.boarded_at, t.boarded_by, b.map_version, b.reference, p.first_name, p.last_name, p.type
from booking.booking b join ticket.ticket t using (booking_id) join booking.passenger p on p.booking_id = t.booking_id and p.seat = t.seat
where b.lead_id = $1::uuid and t.state <> 'REVOKED'
order by b.booking_id <> b.lead_id, t.booking_id, t.seat

-- name: unissued
-- Rows of a booking that are paid for and never had a ticket. (Tickets that were taken back stay so until somebody issues them again.)
select b.booking_id::text from booking.booking b
where b.lead_id = $1::uuid and b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED')
  and (select count(*) from ticket.ticket t where t.booking_id = b.booking_id) = 0

-- name: operator
-- What a partner calls itself.
select name from public.partner where partner_id = $1

-- name: tickets
-- Tickets by id, with what decides whether they are good.
select t.ticket_id::text, t.booking_id::text, b.lead_id::text, t.partner_id, t.trip_no, t.seat, lower(t.legs) as from_place,
  upper(t.legs) as to_place, t.version, t.state, t.valid_from, t.valid_to, t.revoked_at, t.boarded_at, t.boarded_by, b.state as booking_state,
  b.map_version, b.reference, p.first_name, p.last_name, p.state as passenger_state
from unnest($1::uuid[]) w (id), lateral (select * from ticket.ticket where ticket_id = w.id offset 0) t
  join booking.booking b on b.booking_id = t.booking_id
  left join booking.passenger p on p.booking_id = t.booking_id and p.seat = t.seat

-- name: put_scan
-- One scan; told again, the earlier time holds. `fresh`: it was not there. No row: this device's number stands for another scan.
insert into ticket.scan as s (scan_id, partner_id, device, seq, ticket_id, trip_no, version, digest, at, received_at, offline, verdict, result,
  first_result, actor)
values ($1::uuid, $2, $3, $4, $5::uuid, $6, $7, $8, $9, $10, $11, $12, $12, $12, $13)
on conflict on constraint scan_once do update set at = least(s.at, excluded.at)
  where s.digest = excluded.digest
returning scan_id::text, scan_id = $1::uuid as fresh, result

-- name: scans_of_ticket
-- All scans of a ticket.
select scan_id::text, device, seq, at, offline, version, verdict, result from ticket.scan where ticket_id = $1::uuid

-- name: set_results
-- What the fold says now; a scan that had no answer yet was told this.
update ticket.scan s set result = r.result, first_result = case when r.fresh then r.result else s.first_result end
from unnest($1::uuid[], $2::text[], $3::bool[]) r (scan_id, result, fresh) where s.scan_id = r.scan_id

-- name: set_boarded
-- Who boarded with it, when, on whose word.
update ticket.ticket set boarded_at = $2, boarded_by = $3, state = case when $4 then 'USED' else state end where ticket_id = $1::uuid

-- name: set_passenger
-- A passenger is aboard, checked in, given up.
update booking.passenger set state = $3 where booking_id = $1::uuid and seat = any($2::int2[]) and state <> 'CANCELLED'

-- name: give_up
-- Passengers of a booking who are not aboard have not come.
update booking.passenger set state = 'NO_SHOW' where booking_id = $1::uuid and state in ('BOOKED', 'CHECKED_IN')

-- name: note_stranger
-- Audit row and outbox row of a scan of no ticket of ours.
select office.record($1, $2, $3, 'ticket', 'SCANNED', $4::uuid, 1, jsonb_build_object('scanId', $4::text, 'result', $5::text))

-- name: note_ticket
-- Audit row and outbox row of a ticket.
select ticket.note(array[$1::uuid], $2, $3, $4, $5)

-- name: move
-- One move of the table of moves, of rows that are locked.
select booking.move($1::uuid[], $2, $3, $4, $5, $6)

-- name: manifest
-- Who travels on a trip: every passenger of bookings that are paid for, with their ticket.
select b.booking_id::text, b.reference, b.state as booking_state, b.map_version, b.channel, p.seat, p.first_name, p.last_name, p.type,
  p.state as passenger_state, p.detail, lower(b.legs) as from_place, upper(b.legs) as to_place, b.contact, t.ticket_id::text, t.version, t.state,
  t.boarded_at, t.boarded_by
from booking.booking b join booking.passenger p using (booking_id)
  left join ticket.ticket t on t.booking_id = p.booking_id and t.seat = p.seat and t.state <> 'REVOKED'
where b.trip_no = $1 and b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED', 'NO_SHOW') and p.state <> 'CANCELLED'
order by p.seat, lower(b.legs)

-- name: manifest_revoked
-- What an offline scanner has to refuse: tickets taken back, and those of which only a newer version is good.
select t.ticket_id::text, case when t.state = 'REVOKED' then null else t.version end as good_from_version
from booking.booking b join ticket.ticket t using (booking_id)
where b.trip_no = $1 and (t.state = 'REVOKED' or t.version > 1)

-- name: manifest_scans
-- Scans of a trip that somebody should look at.
select s.device, s.seq, s.at, s.received_at, s.result, s.first_result, t.seat, b.reference, b.map_version, t.boarded_at, t.boarded_by
from ticket.scan s join ticket.ticket t using (ticket_id) join booking.booking b using (booking_id)
where s.trip_no = $1 and (s.result = any($2::text[]) or (s.offline and s.result = 'SUPERSEDED') or s.first_result <> s.result)
order by s.at limit 500

-- name: lock_trip
-- Its status changes now: nobody else holds, books or swaps meanwhile.
select booking.lock_trip($1, true)

-- name: trip_status
-- Where a trip stands.
select status, version from sale.trip_instance where trip_no = $1 for update

-- name: set_trip_status
-- SCHEDULED, STARTED, COMPLETED.
update sale.trip_instance set status = $2, version = version + 1 where trip_no = $1 returning trip_id, partner_id, version, bus_id

-- name: note_trip
-- Audit row and outbox row of a trip: its aggregate is made of its id.
select office.record($1, $2, $3, 'trip', $4, md5('trip:' || $5::text)::uuid, $6, $7, $8)

-- name: due
-- Bookings whose bus has left without them, or which have arrived: $1 now, $2 and $3 how long after the planned time.
select b.lead_id::text, b.booking_id::text
from sale.trip_instance i join booking.booking b using (trip_no)
  join sale.trip_stop f on f.trip_no = b.trip_no and f.place = lower(b.legs)
  join sale.trip_stop t on t.trip_no = b.trip_no and t.place = upper(b.legs)
where i.departs_at between $1::timestamptz - interval '10 days' and $1 and i.status <> 'CANCELLED'
  and ((b.state in ('CONFIRMED', 'CHECKED_IN') and (f.departs_at + $2::interval <= $1 or i.status = 'COMPLETED'))
    or (b.state = 'BOARDED' and (t.arrives_at + $3::interval <= $1 or i.status = 'COMPLETED')))
order by b.lead_id limit 200

-- name: due_of_trip
-- The same of one trip, whenever it was planned.
select b.lead_id::text, b.booking_id::text
from sale.trip_instance i join booking.booking b using (trip_no)
  join sale.trip_stop f on f.trip_no = b.trip_no and f.place = lower(b.legs)
  join sale.trip_stop t on t.trip_no = b.trip_no and t.place = upper(b.legs)
where i.trip_no = $4 and i.status <> 'CANCELLED'
  and ((b.state in ('CONFIRMED', 'CHECKED_IN') and (f.departs_at + $2::interval <= $1 or i.status = 'COMPLETED'))
    or (b.state = 'BOARDED' and (t.arrives_at + $3::interval <= $1 or i.status = 'COMPLETED')))
order by b.lead_id limit 200

-- name: still_due
-- The same for one row that is locked now.
select i.status <> 'CANCELLED' and ((b.state in ('CONFIRMED', 'CHECKED_IN') and (f.departs_at + $3::interval <= $2 or i.status = 'COMPLETED'))
    or (b.state = 'BOARDED' and (t.arrives_at + $4::interval <= $2 or i.status = 'COMPLETED')))
from booking.booking b join sale.trip_instance i using (trip_no)
  join sale.trip_stop f on f.trip_no = b.trip_no and f.place = lower(b.legs)
  join sale.trip_stop t on t.trip_no = b.trip_no and t.place = upper(b.legs)
where b.booking_id = $1::uuid
