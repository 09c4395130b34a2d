-- name: join
-- A place at the end of a trip's waitlist.
select waiting.join($1, $2, $3, $4, int4range($5, $6), $7, $8, $9, $10, $11)

-- name: entry
-- A place, how many wait before it, and its hold.
select e.entry_id::text, e.partner_id, e.trip_no, e.seats, lower(e.legs) as start, upper(e.legs) as end, e.holder, e.state, e.joined_at,
  e.hold_id::text, e.version, (select count(*) from waiting.entry o where o.trip_no = e.trip_no and o.state = 'WAITING' and o.number < e.number)
    as ahead, b.state as hold_state, b.seats as hold_seats, b.prices, b.currency, b.map_version, b.expires_at,
  b.expires_at <= clock_timestamp() as over
from waiting.entry e left join booking.booking b on b.booking_id = e.hold_id where e.entry_id = $1

-- name: lock_entry
-- The same row for a change of it.
select state, trip_no, hold_id::text from waiting.entry where entry_id = $1 for update

-- name: move
-- It is something else from now on.
select waiting.move($1, $2, null, $3, $4)

-- name: release
-- The seats that were offered are free again, unless they have been booked meanwhile.
select case when (select bool_and(state = 'HELD') from booking.locked($1)) then booking.release(null, null, $1, $2, $3) end

-- name: freed
-- Of these trips something was let go; only those that somebody waits for are written down.
insert into waiting.freed (trip_no, partner_id)
select i.trip_no, i.partner_id from unnest($1::text[]) u, lateral (select trip_no, partner_id from sale.trip_instance where trip_id = u offset 0) i,
  lateral (select from waiting.entry e where e.trip_no = i.trip_no and e.state in ('WAITING', 'OFFERED') limit 1) waits order by i.trip_no
on conflict do nothing

-- name: take_freed
-- The trips to look at; whoever takes them looks.
delete from waiting.freed where trip_no = any(array(select trip_no from waiting.freed order by at limit $1 for update skip locked))
returning trip_no

-- name: waited_for
-- Every trip that somebody waits for, or has an offer of.
select distinct trip_no from waiting.entry where state in ('WAITING', 'OFFERED') order by trip_no

-- name: look_after
-- One at a time looks after a trip's waitlist.
select waiting.look_after($1)

-- name: tidy
-- Offers that are over, places of a trip that is no longer sold.
select waiting.tidy($1, $2)

-- name: line
-- Who waits for a trip, first come first.
select entry_id::text, seats, lower(legs) as start, upper(legs) as end, holder from waiting.entry
where trip_no = $1 and state = 'WAITING' order by number limit $2

-- name: hold
-- The seats of an offer, without limits.
select booking.hold($1, null, null, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'WAITLIST', $12, 'system', $13, null, null)

-- name: offer
-- They are held for this place.
select waiting.offer($1, $2, $3)

-- name: switches
-- What operators said about the rooms of trips still to come.
select i.trip_id, r.mode, r.admit_per_s from waiting.room r join sale.trip_instance i using (trip_no)
where r.mode <> 'AUTO' and i.closes_at > clock_timestamp() and i.status = 'SCHEDULED'

-- name: put_switch
-- What an operator says about one; its version.
insert into waiting.room as r (trip_no, partner_id, mode, admit_per_s) values ($1, $2, $3, $4)
on conflict (trip_no) do update set mode = excluded.mode, admit_per_s = excluded.admit_per_s, version = r.version + 1 returning version

-- name: switch
-- The same of one trip.
select mode, admit_per_s from waiting.room where trip_no = $1

-- name: record
-- Audit row and outbox row of a switch.
select office.record($1, $2, $3, 'waitlist', 'ROOM_SWITCHED', md5('room:' || $4::bigint)::uuid, $5, $6, $6)
