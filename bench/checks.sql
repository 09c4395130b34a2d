-- What must be true of the bookings at every commit: each statement answers the rows that are wrong, none where all is well. Run by a
-- superuser (row-level security hides nothing from it), the product's own functions not trusted.

-- name: overlaps
-- Two live claims on one seat, of one trip and map, with a leg in common: a seat sold twice.
select a.trip_no, a.map_version, a.seat, a.legs::text as legs, b.legs::text as other_legs, a.booking_id::text as booking,
  b.booking_id::text as other
from booking.seat_claim a
join booking.seat_claim b on b.trip_no = a.trip_no and b.map_version = a.map_version and b.seat = a.seat and b.legs && a.legs and b.ctid > a.ctid
where a.state in ('HELD', 'SOLD') and b.state in ('HELD', 'SOLD')
limit 20;

-- name: stale_claims
-- A live claim on a seat map that is no longer its trip's: a hold that raced a swap, its seat is sold again under the new map.
select c.trip_no, c.map_version, c.seat, i.map_version as map_now, c.booking_id::text as booking
from booking.seat_claim c join sale.trip_instance i on i.trip_no = c.trip_no
where c.state in ('HELD', 'SOLD') and c.map_version <> i.map_version
limit 20;

-- name: partial
-- A booking that needs seats and has not exactly its own, on its map, for its legs, HELD before the money and SOLD after it.
select b.booking_id::text as booking, b.state, b.seats::text as seats, c.seats::text as claimed
from booking.booking b
left join lateral (
  select array_agg(s.seat order by s.seat) as seats,
    bool_and(s.map_version = b.map_version and s.legs = b.legs and s.trip_no = b.trip_no
      and s.state = case when b.state in ('HELD', 'PENDING_PAYMENT') then 'HELD' else 'SOLD' end) as right_ones
  from booking.seat_claim s where s.booking_id = b.booking_id and s.state in ('HELD', 'SOLD')) c on true
where b.channel <> 'LEASE'
  and case when b.state in ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED')
    then c.seats is distinct from array(select u from unnest(b.seats) u order by u) or not c.right_ones
    else c.seats is not null end
limit 20;

-- name: orphans
-- A live claim that belongs to no booking.
select c.booking_id::text as booking, c.trip_no, c.seat from booking.seat_claim c
where c.state in ('HELD', 'SOLD') and not exists (select from booking.booking b where b.booking_id = c.booking_id)
limit 20;

-- name: halves
-- A booking of two trips of which one has its seats and the other has lost them.
select lead_id::text as lead, array_agg(state order by booking_id)::text as states from booking.booking
group by lead_id
having count(*) > 1 and count(distinct case state when 'HELD' then 1 when 'PENDING_PAYMENT' then 1 when 'EXPIRED' then 2 when 'RELEASED' then 2
  else 3 end) > 1
limit 20;

-- name: passengers
-- A booked row whose passengers are not one for each of its seats.
select b.booking_id::text as booking, b.state, b.seats::text as seats, p.seats::text as passengers from booking.booking b
left join lateral (select array_agg(q.seat order by q.seat) as seats from booking.passenger q where q.booking_id = b.booking_id) p on true
where b.state in ('PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED') and b.channel <> 'LEASE'
  and p.seats is distinct from array(select u from unnest(b.seats) u order by u)
limit 20;

-- name: events
-- A booking whose versions were not all said, in the outbox and in the audit, from the first to the one it stands at.
select b.booking_id::text as booking, b.state, b.version, o.n as events, a.n as audit_rows from booking.booking b
left join (select aggregate, count(*) as n, max(version) as newest from office.outbox where topic = 'booking' group by 1) o
  on o.aggregate = b.booking_id
left join (select entity_id, count(*) as n from office.audit where entity_kind = 'booking' group by 1) a on a.entity_id = b.booking_id
where o.n is distinct from b.version or o.newest <> b.version or coalesce(a.n, 0) < b.version
limit 20;

-- name: confirms
-- A booking that was ever confirmed has said so once; what never was has not.
select b.booking_id::text as booking, b.state, count(o.*) as said from booking.booking b
left join office.outbox o on o.topic = 'booking' and o.aggregate = b.booking_id
  and o.kind = 'CONFIRMED'
group by b.booking_id, b.state
having count(o.*) > 1 or (b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED', 'NO_SHOW') and count(o.*) = 0)
  or (b.state in ('HELD', 'PENDING_PAYMENT', 'RELEASED') and count(o.*) > 0)
limit 20;

-- name: answers
-- An answer kept under a key that speaks of a booking that is not there.
select i.key::text as key, i.answer->>'status' as status, i.answer->>'booking' as booking from office.idempotency i
where i.answer->>'status' = 'HELD' and not exists (select from booking.booking b where b.booking_id = (i.answer->>'booking')::uuid)
limit 20;

-- name: deadlocks
-- How many deadlocks the server had to break in this database.
select deadlocks from pg_stat_database where datname = current_database();

-- name: kill
-- The end of one of them.
select pg_terminate_backend($1);

-- name: committed
-- Of the aggregates the events that were committed, by the id under which they are said.
select topic || ':' || aggregate || ':' || version from office.outbox where aggregate = any($1::uuid[]);

-- name: ledger
-- A transaction of the ledger whose debits and credits differ.
select txn, currency, sum(debit)::bigint as debit, sum(credit)::bigint as credit from money.ledger
group by txn, currency having sum(debit) <> sum(credit)
limit 20;

-- name: paid_without_seat
-- Money that was taken and kept for a booking that never got its seats, or lost them by time.
select p.payment_id::text as payment, p.captured, p.refunded, p.state, array_agg(b.state)::text as rows
from money.payment p join booking.booking b on b.lead_id = p.lead_id
where p.captured > p.refunded + p.charged_back and p.state = 'CONFIRMED'
group by p.payment_id, p.captured, p.refunded, p.state
having bool_and(b.state in ('HELD', 'PENDING_PAYMENT', 'EXPIRED', 'RELEASED'))
limit 20;

-- name: seat_without_money
-- Seats sold over the counter of the web for which no money was ever taken.
select b.lead_id::text as lead, b.reference, b.state, b.total from booking.booking b
where b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED') and b.channel = 'WEB' and b.total > 0
  and not exists (select from money.payment p where p.lead_id = b.lead_id and p.captured > 0)
  and not exists (select from money.credit c where c.lead_id = b.lead_id)
limit 20;

-- name: refunded_too_much
-- More given back than was taken.
select payment_id::text as payment, captured, refunded, charged_back from money.payment
where refunded > captured or captured < 0
limit 20;

-- name: unfinished
-- What a house at rest has not: events that wait, holds and unpaid bookings past their time, payments and refunds under way.
select (select count(*) from office.outbox where delivered_at is null) as events,
  (select count(*) from booking.booking where state in ('HELD', 'PENDING_PAYMENT') and channel <> 'LEASE') as unpaid,
  (select count(*) from money.payment where state in ('INITIATED', 'IN_PROGRESS', 'REFUNDING')) as payments,
  (select count(*) from money.refund where state in ('PENDING', 'RUNNING')) as refunds;

-- name: states
-- Every booking row: what it stands at, and whether it was ever confirmed.
select b.booking_id::text as id, b.lead_id::text as lead, b.reference, b.state,
  exists (select from office.outbox o where o.topic = 'booking' and o.aggregate = b.booking_id and o.kind = 'CONFIRMED') as confirmed
from booking.booking b;

-- name: held_by_request
-- Which holds a request of that id made.
select request_id, entity_id::text as id from office.audit where action = 'booking.HELD';

-- name: counted
-- What a run left behind.
select (select count(*) from booking.booking) as bookings, (select count(*) from booking.seat_claim) as claims,
  (select count(*) from office.outbox) as events, (select count(*) from office.audit) as audit_rows,
  (select count(*) from office.outbox where kind = 'CONFIRMED' and topic = 'booking') as confirms,
  (select count(*) from money.ledger) as ledger_lines,
  (select deadlocks from pg_stat_database where datname = current_database()) as deadlocks;

-- name: some_backends
-- Some of the application's connections, by chance.
select pid from pg_stat_activity where usename = 'timepoint_app' and datname = current_database() order by random() limit $1;
