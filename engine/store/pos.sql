-- name: device_of_token
-- The device that a token's SHA-256 belongs to.
select partner_id, device_id from pos.device where token_sha256 = $1 and retired_at is null

-- name: name_device
-- A device that people of the operator use for the first time.
insert into pos.device (partner_id, device_id) values ($1, $2) on conflict do nothing

-- name: lock_device
-- The device's row: what one device asks for is done one after the other.
select device_id, version, retired_at is not null as retired from pos.device where partner_id = $1 and device_id = $2 for update

-- name: changed_device
-- One more change of it.
update pos.device set version = version + 1 where partner_id = $1 and device_id = $2 returning version

-- name: put_device
-- A device with a token of its own, or an old one with a new token.
insert into pos.device as d (partner_id, device_id, name, token_sha256) values ($1, $2, $3, $4)
on conflict (partner_id, device_id) do update
  set name = excluded.name, token_sha256 = excluded.token_sha256, retired_at = null, version = d.version + 1
returning version

-- name: retire_device
-- For ever, or until it is given a new token.
update pos.device set retired_at = clock_timestamp(), token_sha256 = null, version = version + 1
where partner_id = $1 and device_id = $2 and retired_at is null returning version

-- name: record
-- Audit row and outbox row of a change that is no booking's.
select office.record($1, $2, $3, 'pos', $4, pos.aggregate($5, $1, $6), $7, $8, $9)

-- name: policy
-- What the operator does with a sale whose seat is gone.
select on_conflict from pos.policy where partner_id = $1

-- name: put_policy
-- The same, decided anew.
insert into pos.policy as p (partner_id, on_conflict) values ($1, $2)
on conflict (partner_id) do update set on_conflict = excluded.on_conflict, version = p.version + 1 returning version

-- name: hold
-- The seats of a lease, without limits and without a key of their own (the lease has one).
select booking.hold($1, null, null, $2, $3, $4, $5, $6, $7, $8, $9, null, $10, 'LEASE', $11, $12, $13, null, null)

-- name: put_lease
-- What the hold is for.
insert into pos.lease (lease_id, partner_id, device_id, trip_no, labels, legs, tariff) values ($1, $2, $3, $4, $5, int4range($6, $7), $8)

-- name: lease
-- A lease and what is left of it: rows of (seat numbers, legs).
select l.lease_id::text, l.device_id, l.trip_no, l.labels, lower(l.legs) as start, upper(l.legs) as end, l.tariff, l.leased_at,
  b.state, b.map_version, b.expires_at, b.expires_at <= clock_timestamp() as over,
  (select coalesce(jsonb_agg(jsonb_build_array(c.seat, lower(c.legs), upper(c.legs)) order by c.seat, c.legs), '[]')
    from booking.booking r join booking.seat_claim c using (booking_id) where r.lead_id = l.lease_id and c.state = 'HELD') as left
from pos.lease l join booking.booking b on b.booking_id = l.lease_id where l.lease_id = $1 and l.partner_id = $2

-- name: leases_of
-- The leases of a device on these trips.
select l.lease_id::text, l.trip_no, lower(l.legs) as start, upper(l.legs) as end, l.tariff, l.leased_at, b.state,
  least(b.expires_at, l.ended_at) as ends_at
from pos.lease l join booking.booking b on b.booking_id = l.lease_id
where l.partner_id = $1 and l.device_id = $2 and l.trip_no = any($3::bigint[])

-- name: end_lease
-- The rest was given back now.
update pos.lease set ended_at = coalesce(ended_at, clock_timestamp()) where lease_id = $1

-- name: release
-- The seats that are left of it are free.
select booking.release(null, null, $1, $2, $3)

-- name: extend
-- It goes on.
select pos.extend($1, $2, $3, $4, $5)

-- name: sales
-- What is known of these numbers of a device.
select s.*, b.state as booking_state from pos.sale s left join booking.booking b using (booking_id)
where s.partner_id = $1 and s.device_id = $2 and s.seq = any($3::bigint[])

-- name: sales_of
-- The sales of these leases that the fold decides: those whose only question is whether the seat was free.
select s.*, b.state as booking_state from pos.sale s left join booking.booking b using (booking_id)
where s.lease_id = any($1::uuid[]) and s.seat = any($2::text[]) and (s.code is null or s.code = 'SEAT_TAKEN') and s.result <> 'VOIDED'

-- name: lock_trip
-- Shared with everybody who sells; a swap or a cancellation waits, or makes us wait.
select booking.lock_trip($1)

-- name: lock_bookings
-- The rows of these leads, by id; and the rows of these ids, which an exchange may have given another lead.
select booking_id::text, state from booking.booking
where booking_id = any(array(select booking_id from booking.booking where lead_id = any($1::uuid[]) union select unnest($1::uuid[])))
order by booking_id for update

-- name: trip_now
-- What may have changed since the trip was read into memory.
select status, map_version from sale.trip_instance where trip_no = $1

-- name: claims
-- Who has which legs of these seats.
select c.seat, lower(c.legs) as start, upper(c.legs) as end, b.lead_id::text as lead
from booking.seat_claim c join booking.booking b using (booking_id)
where c.trip_no = $1 and c.map_version = $2 and c.seat = any($3::int2[]) and c.active

-- name: keep
-- What is left of one seat of a lease.
select pos.keep($1, $2, $3, array(select int4range(a, b) from unnest($4::int[], $5::int[]) r(a, b) order by a), $6, $7)

-- name: put
-- The booking of one sale; false: the reference is in use.
select pos.put($1, $2, $3, $4, $5, $6, int4range($7, $8), $9, $10, $11, $12, $13)

-- name: claim
-- Its seat; false: somebody has it.
select pos.claim($1)

-- name: drop
-- A booking that was begun and got no seat leaves no trace.
select pos.drop($1)

-- name: confirm
-- Cash taken, confirmed, ticket issued.
select pos.confirm($1, $2, $3, $4, $5)

-- name: owe
-- Cash taken and owed back.
select pos.owe($1, $2, $3, $4, $5, $6)

-- name: undo
-- The seat and the ticket are gone, the money is owed back.
select pos.undo($1, $2, $3, $4)

-- name: pay_out
-- What is owed leaves the drawer.
select pos.pay_out($1, $2, $3, $4)

-- name: put_sale
-- A sale and what became of it.
insert into pos.sale (partner_id, device_id, seq, fingerprint, trip_no, lease_id, seat, legs, sold_at, amount, currency, method, passenger, void,
  result, code, booking_id, reference, given)
values ($1, $2, $3, $4, $5, $6, $7, int4range($8, $9), $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)

-- name: change_sale
-- What became of it now.
update pos.sale set void = $4, result = $5, code = $6, booking_id = $7, reference = $8, given = $9, version = version + 1
where partner_id = $1 and device_id = $2 and seq = $3

-- name: sale_page
-- Sales of an operator's device by number, of one result where it is named.
select s.*, lower(s.legs) as start, upper(s.legs) as end, b.state as booking_state from pos.sale s left join booking.booking b using (booking_id)
where s.partner_id = $1 and s.device_id = $2 and s.seq > $3 and ($4::text is null or s.result = $4) order by s.seq limit $5

-- name: free_seats
-- Seats that nobody has for these legs now; what is held past its time counts as free.
select u as seat from sale.trip_instance i join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version, unnest(m.seats) u
where i.trip_no = $1 and not exists (
  select from booking.seat_claim c join booking.booking b using (booking_id)
  where c.trip_no = i.trip_no and c.map_version = i.map_version and c.seat = u and c.active and c.legs && int4range($2, $3)
    and not (b.state in ('HELD', 'PENDING_PAYMENT') and not b.paying and b.expires_at <= clock_timestamp()))
order by u

-- name: open_session
-- A drawer with a float in it.
insert into pos.session (session_id, partner_id, device_id, currency, opened_by, opened_with) values ($1, $2, $3, $4, $5, $6)
returning opened_at

-- name: open_drawer
-- The float is in it.
select money.open_drawer($1, $2, $3, $4, $5)

-- name: session
-- One session, locked.
select *, session_id::text as id from pos.session where session_id = $1 and partner_id = $2 for update

-- name: drawer
-- What should be in it now.
select money.drawer($1, $2, $3)

-- name: count_drawer
-- It is emptied and the difference booked.
select money.count_drawer($1, $2, $3, $4, $5)

-- name: close_session
-- Counted.
update pos.session set closed_by = $2, closed_at = clock_timestamp(), counted = $3, expected = $4, difference = $5 where session_id = $1
returning *, session_id::text as id
