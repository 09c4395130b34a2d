-- name: locked
-- The rows of a booking with their trips' locks (shared) and their own: where every change begins.
select * from booking.locked($1)

-- name: lock_trip
-- A trip for oneself, or shared; in the order of trip numbers where there are several.
select booking.lock_trip($1, $2)

-- name: passengers
-- Who sits where in some rows.
select booking_id, seat, first_name, last_name, type, price, detail, state from booking.passenger where booking_id = any($1::uuid[])
order by booking_id, seat

-- name: extras
-- What was bought beside the seats of some rows, by seat (0: of nobody in particular).
select booking_id, seat, sum(price * count)::bigint as amount from booking.ancillary where booking_id = any($1::uuid[]) group by booking_id, seat

-- name: extras_of
-- The same one by one, as `sale.take_ancillaries` takes them.
select seat, code, kind, name, count, price, stock from booking.ancillary where booking_id = $1 order by seat, code

-- name: take_extras
-- The same things for another row: stock is counted, or ANCILLARY_SOLD_OUT is raised.
select sale.take_ancillaries($1)

-- name: move
-- One move of the table of moves, with its claims, audit row and event.
select booking.move($1, $2, $3, $4, $5, $6)

-- name: worth
-- What a row counts for.
update booking.booking set total = $2 where booking_id = $1

-- name: revoke
-- Tickets of some rows (of some seats) are good no more.
select ticket.revoke($1, $2, $3, $4)

-- name: issue
-- Tickets for every passenger that has none in force.
select ticket.issue($1, $2, $3)

-- name: paid
-- What of a booking's money is here.
select money.paid($1)

-- name: refund
-- Refunds planned over the payments of a booking.
select money.plan_refund($1, $2, $3, $4, $5)

-- name: shrink
-- Some seats of a row are given up.
select booking.shrink($1, $2, $3, $4, $5, $6, $7)

-- name: reseat
-- Other seats of the same trip for a row.
select booking.reseat($1, $2, $3, $4, $5, $6)

-- name: put_offer
-- A cancellation as it is offered, and that it was.
with a as (
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
  values ($3::text, $11, $12, 'booking.CANCEL_OFFERED', 'booking', $2::uuid,
    jsonb_build_object('offerId', $1::uuid, 'fee', $6::bigint, 'refund', $7::bigint)))
insert into booking.offer (offer_id, lead_id, partner_id, versions, parts, fee, refund, currency, expires_at, used_at, answer)
values ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp() + $9, case when $10::jsonb is not null then clock_timestamp() end, $10)
returning expires_at

-- name: offer
-- An offer, to be used by nobody else meanwhile.
select *, expires_at <= clock_timestamp() as over from booking.offer where offer_id = $1 for update

-- name: use_offer
-- It is confirmed.
update booking.offer set used_at = clock_timestamp(), answer = $2 where offer_id = $1

-- name: drop_offers
-- Offers that ended more than a week ago.
delete from booking.offer where offer_id in (
  select offer_id from booking.offer where expires_at < clock_timestamp() - interval '7 days' limit 1000)

-- name: rename
-- A passenger's name and what else is known of them.
update booking.passenger set first_name = $3, last_name = $4, detail = $5 where booking_id = $1 and seat = $2 and state <> 'CANCELLED'

-- name: surnames
-- What a look-up has to know besides the reference.
update booking.reference set surnames = $2 where lead_id = $1

-- name: modified
-- A row has changed in a way that moves no seat: its version, audit row and event.
with b as (update booking.booking set version = version + 1 where booking_id = $1 returning booking_id)
select booking.note(array[$1::uuid], 'MODIFIED', $2, $3, $4) from b

-- name: fare_terms
-- The fare plan that a trip is sold by.
select p.body from sale.trip_instance i join sale.fare_plan p on p.partner_id = i.partner_id and p.fare_plan_id = i.fare_plan_id
where i.trip_no = $1

-- name: join_lead
-- A fresh hold becomes a row of a booking that is paid for.
select booking.join_lead($1, $2, $3, $4, $5, $6, $7)

-- name: put_exchange
-- A booking that replaces a row once it is paid, and what that row's money counts for.
with c as (insert into money.credit (lead_id, partner_id, from_lead, amount) values ($1, $2, $3, $5))
insert into booking.exchange (lead_id, partner_id, from_id, credit, worth) values ($1, $2, $4, $5, $6)

-- name: exchange_waits
-- The reference of an exchange of this row that can still be paid for.
select b.reference from booking.exchange e, lateral (
  select reference from booking.booking where lead_id = e.lead_id and state = 'PENDING_PAYMENT' and (paying or expires_at > clock_timestamp())
    offset 0) b
where e.from_id = $1 and e.done_at is null limit 1

-- name: trip
-- A trip instance as it stands, by its public id.
select * from sale.trip_instance where trip_id = $1

-- name: trip_by_no
-- The same by its number.
select * from sale.trip_instance where trip_no = $1

-- name: layout
-- A seat layout of an operator.
select body, version from sale.seat_layout where partner_id = $1 and layout_id = $2 and retired_at is null

-- name: map
-- The seat map of a trip in one version.
select labels, seats, layout from sale.seat_map where trip_no = $1 and map_version = $2

-- name: claims_of_trip
-- Every active claim of a trip's map with the row that has it.
select c.booking_id, c.seat, lower(c.legs) as start, upper(c.legs) as "end", b.lead_id, b.reference, b.state, b.channel, b.total, b.seats,
  b.state in ('HELD', 'PENDING_PAYMENT') and not b.paying and b.expires_at <= clock_timestamp() as over
from (select booking_id, seat, legs from booking.seat_claim where trip_no = $1 and map_version = $2 and active offset 0) c,
  lateral (select * from booking.booking where booking_id = c.booking_id offset 0) b
order by c.booking_id, c.seat, c.legs

-- name: leads_of
-- The bookings that some rows belong to.
select distinct lead_id from booking.booking where booking_id = any($1::uuid[])

-- name: trips_of_leads
-- The trips that some bookings have rows on.
select distinct trip_no from booking.booking where lead_id = any($1::uuid[]) order by trip_no

-- name: lock_leads
-- All rows of some bookings, locked by id.
select * from booking.booking where lead_id = any($1::uuid[]) order by booking_id for update

-- name: expire
-- Holds that are over go, as whole bookings.
select booking.expire($1, $2)

-- name: put_plan
-- A swap as it was shown, and that it was; the same plan again stays as it is.
with a as (
  insert into office.audit (partner_id, actor, request_id, action, entity_kind, entity_id, diff)
  select $3::text, $10, $11, 'trip.SWAP_PLANNED', 'trip', md5('trip:' || trip_id)::uuid, jsonb_build_object('planId', $2::text, 'layoutId', $5::text)
  from sale.trip_instance where trip_no = $1::bigint)
insert into sale.swap_plan (trip_no, plan_id, partner_id, map_version, layout_id, layout_version, bus_id, moves, overflow)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (trip_no, plan_id) do update set bus_id = excluded.bus_id where sale.swap_plan.answer is null

-- name: plan
-- A swap that was shown.
select * from sale.swap_plan where trip_no = $1 and plan_id = $2

-- name: use_plan
-- It is committed.
update sale.swap_plan set answer = $3 where trip_no = $1 and plan_id = $2

-- name: swap
-- The next map of a trip, its claims, rows, passengers and tickets moved.
select booking.swap($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: later_trips
-- Other trips of a route that leave after one of its trips, soonest first.
select trip_id, trip_no from sale.trip_instance
where route_id = $1 and partner_id = $2 and trip_no <> $3 and status = 'SCHEDULED' and departs_at > greatest($4::timestamptz, clock_timestamp())
  and departs_at < $4::timestamptz + $5::interval
order by departs_at, trip_no limit $6

-- name: taken
-- Seats of a map that somebody has on some of these legs.
select distinct seat from booking.seat_claim where trip_no = $1 and map_version = $2 and legs && int4range($3, $4) and active

-- name: set_open
-- Sales of a trip stop or go on.
select sale.set_open($1, $2, $3, $4)

-- name: cancel_trip
-- A trip is cancelled; its bookings follow one by one.
select booking.cancel_trip($1, $2, $3, $4)

-- name: cancelling
-- Cancelled trips whose bookings are not all dealt with, longest first.
select trip_no from booking.trip_cancellation where finished_at is null order by started_at limit 20

-- name: bookings_left
-- Bookings of a cancelled trip that still have seats, after one of them.
select distinct lead_id from booking.booking
where trip_no = $1 and lead_id > $3 and state in ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED') order by lead_id limit $2

-- name: cancel_for_trip
-- One of them is dealt with: cancelled, and its money on its way back.
select booking.cancel_for_trip($1, $2)

-- name: finish_cancellation
-- Nothing is left to do for a cancelled trip.
update booking.trip_cancellation set finished_at = clock_timestamp() where trip_no = $1 and finished_at is null and not exists (
  select from booking.booking where trip_no = $1 and state in ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED'))

-- name: cancellation
-- How far a cancelled trip has come.
select bookings, refunded, started_at, finished_at, reason from booking.trip_cancellation where trip_no = $1
