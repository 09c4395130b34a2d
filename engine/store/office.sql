-- name: waiting
-- Events of one partition that wait to be said, in the order in which to say them.
select topic, aggregate::text, version, partner_id, kind, body, at, held from office.waiting($1, $2)

-- name: delivered
-- Marks events as said; how many were not yet.
select office.delivered($1, $2, $3::uuid[], $4)

-- name: park
-- What waits behind a dead letter leaves the relay's sight.
select office.park($1, $2, $3::uuid)

-- name: bury
-- An event becomes a dead letter and holds back its aggregate.
select office.bury($1::uuid, $2, $3, $4::uuid, $5, $6, $7, $8, $9::uuid, $10)

-- name: lag
-- Seconds that the oldest waiting event of each partition has waited, and how many dead letters hold back their aggregate.
select p.part, extract(epoch from clock_timestamp() - o.at)::float8 as oldest_s,
       (select count(*) from office.dead_letter d where d.part = p.part and d.state = 'HELD') as held
from unnest(array[0, 1, 2, 3]::int2[]) p(part)
left join lateral (select at from office.outbox
                   where part = p.part and delivered_at is null and not parked order by at limit 1) o on true

-- name: dead_letters
-- Dead letters of this tenant, newest first, with how many events wait behind each.
select d.dead_letter_id::text, d.partner_id, d.topic, d.aggregate::text, d.version, d.kind, d.sink, d.attempts, d.error, d.state, d.died_at,
       d.replays, d.replayed_at, d.replayed_by,
       (select count(*) from office.outbox o
        where o.part = d.part and o.topic = d.topic and o.aggregate = d.aggregate and o.delivered_at is null and o.version > d.version) as behind
from office.dead_letter d
where d.dead_letter_id < $1::uuid and ($2::text is null or d.state = $2)
order by d.dead_letter_id desc
limit $3

-- name: replay
-- Has a dead letter tried again; its state before, null: not there.
select office.replay($1::uuid, $2, $3)

-- name: record
-- Audit row and outbox row of one change.
select office.record($1, $2, $3, $4, $5, $6::uuid, $7, $8, null)

-- name: partner
-- Whether an operator exists.
select exists (select from public.partner where partner_id = $1)

-- name: consume
-- True the first time that a consumer sees an event: in the transaction of its effect.
with new as (insert into office.inbox (consumer, event_id) values ($1, $2) on conflict do nothing returning 1)
select exists (select from new)

-- name: audit
-- Audit rows of this tenant, newest first.
select audit_id, partner_id, actor, request_id, at, action, entity_kind, entity_id::text, diff
from office.audit
where audit_id < $1 and audit_id >= $2 and ($3::text is null or entity_kind = $3) and ($4::uuid is null or entity_id = $4)
  and ($5::text is null or actor = $5) and ($6::text is null or action = $6)
  and ($7::timestamptz is null or at >= $7) and ($8::timestamptz is null or at < $8)
order by audit_id desc
limit $9

-- name: audit_of_entity
-- The same for one entity, by its own index.
select * from (
  select audit_id, partner_id, actor, request_id, at, action, entity_kind, entity_id::text, diff
  from office.audit where entity_id = $4 offset 0) a
where audit_id < $1 and audit_id >= $2 and entity_kind = $3
  and ($5::text is null or actor = $5) and ($6::text is null or action = $6)
  and ($7::timestamptz is null or at >= $7) and ($8::timestamptz is null or at < $8)
order by audit_id desc
limit $9

-- name: audit_near
-- An audit id from which on rows are of that time or later, give or take a minute.
select office.audit_near($1)

-- name: overdue
-- Holds and unpaid bookings whose time ended within a span, oldest first.
select booking_id::text, expires_at from booking.booking
where expires_at > $1 and expires_at <= clock_timestamp() and state in ('HELD', 'PENDING_PAYMENT') and not paying
order by expires_at limit $2

-- name: expire
-- Those of these bookings that are still over go, whole bookings at a time; their ids.
select booking.expire($1::uuid[], $2)::text[]

-- name: sweep_outbox
-- A slice of the events that were said long ago; how many went.
with gone as (
  delete from office.outbox where (part, topic, aggregate, version) in (
    select part, topic, aggregate, version from office.outbox where delivered_at < clock_timestamp() - $1::interval
    order by delivered_at limit $2) returning 1)
select count(*) from gone

-- name: sweep_inbox
-- A slice of what consumers did so long ago that it will not come again; how many went.
with gone as (
  delete from office.inbox where (consumer, event_id) in (
    select consumer, event_id from office.inbox where at < clock_timestamp() - $1::interval order by at limit $2) returning 1)
select count(*) from gone

-- name: bitmaps
-- For the next statement of this transaction: its only index by time is a BRIN, which answers to bitmap scans alone.
select set_config('enable_bitmapscan', 'on', true)

-- name: sweep_keys
-- A slice of the answers that need not be kept any longer; how many went.
with gone as (
  delete from office.idempotency where key in (
    select key from office.idempotency where keep_until < clock_timestamp() limit $1) returning 1)
select count(*) from gone

-- name: holder
-- Whose a booking is, by its reference.
select b.partner_id, array_agg(distinct b.holder) as holders, array_agg(b.booking_id::text) as ids
from booking.reference r
join booking.booking b on b.lead_id = r.lead_id
where r.reference = $1
group by b.partner_id
