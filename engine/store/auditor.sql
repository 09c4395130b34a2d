-- name: seat_sold_once
-- No seat of a trip is claimed twice for the same leg. (Looked for by a join: the constraint is not trusted.)
select 'trip:' || a.trip_no as entity,
       format('seat %s of map %s: booking %s has legs %s, booking %s has %s', a.seat, a.map_version, a.booking_id, a.legs, b.booking_id, b.legs) as said
from booking.seat_claim a
join booking.seat_claim b on b.trip_no = a.trip_no and b.map_version = a.map_version and b.seat = a.seat and b.legs && a.legs and b.ctid > a.ctid
where a.state in ('HELD', 'SOLD') and b.state in ('HELD', 'SOLD')

-- name: claim_is_of_its_booking
-- Every active claim belongs to a booking that still needs it: same trip, same map, same legs, one of its seats.
select 'booking:' || c.booking_id as entity,
       format('seat %s of trip %s, legs %s: %s', c.seat, c.trip_no, c.legs, coalesce('the booking is ' || b.state, 'there is no such booking')) as said
from booking.seat_claim c
left join booking.booking b on b.booking_id = c.booking_id
where c.state in ('HELD', 'SOLD')
  and (b.booking_id is null or b.state not in ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED')
    or b.trip_no <> c.trip_no or b.map_version <> c.map_version or b.legs <> c.legs or not c.seat = any(b.seats))

-- name: booking_has_its_claims
-- Every booking that needs seats has a claim on each of them, and on no other: none is held in part.
select 'booking:' || b.booking_id as entity, format('%s with seats %s has claims on %s', b.state, b.seats, c.seats) as said
from booking.booking b
left join lateral (select array_agg(s.seat order by s.seat) as seats from booking.seat_claim s
                   where s.booking_id = b.booking_id and s.state in ('HELD', 'SOLD')) c on true
where b.state in ('HELD', 'PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED')
  and coalesce(c.seats, '{}') <> array(select u from unnest(b.seats) u order by u)

-- name: sold_means_paid
-- A claim is SOLD if and only if its booking is confirmed, checked in, boarded or completed.
select 'booking:' || b.booking_id as entity, format('%s, and its claim on seat %s is %s', b.state, c.seat, c.state) as said
from booking.seat_claim c
join booking.booking b using (booking_id)
where c.state in ('HELD', 'SOLD')
  and (c.state = 'SOLD') <> (b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED'))

-- name: claims_on_the_trips_map
-- Active claims are on the seat map that their trip has now, on seats that this map sells.
select 'trip:' || c.trip_no as entity,
       format('booking %s has seat %s of map %s; the trip has map %s', c.booking_id, c.seat, c.map_version, i.map_version) as said
from booking.seat_claim c
join sale.trip_instance i using (trip_no)
left join sale.seat_map m on m.trip_no = c.trip_no and m.map_version = c.map_version
where c.state in ('HELD', 'SOLD')
  and (c.map_version <> i.map_version or m.trip_no is null or c.seat < 1 or c.seat > cardinality(m.labels) or upper(c.legs) > i.stops - 1
    or lower(c.legs) < 0)

-- name: bookings_are_whole
-- The rows of a return booking stand or fall together until they are paid for.
select 'booking:' || lead_id as entity, array_agg(state order by booking_id)::text as said
from booking.booking
where channel <> 'LEASE'
group by lead_id
having bool_or(state in ('HELD', 'PENDING_PAYMENT')) and bool_or(state in ('EXPIRED', 'RELEASED', 'CONFIRMED'))
  and not exists (select from booking.exchange e where e.lead_id = booking.lead_id)

-- name: passengers_have_their_seats
-- A booked row has one passenger for each of its seats, and none else.
select 'booking:' || b.booking_id as entity, format('%s: seats %s, passengers on %s', b.state, b.seats, p.seats) as said
from booking.booking b
left join lateral (select array_agg(q.seat order by q.seat) as seats from booking.passenger q
                   where q.booking_id = b.booking_id and q.state <> 'CANCELLED') p on true
where b.state in ('PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED') and b.channel <> 'LEASE'
  and coalesce(p.seats, '{}') <> array(select u from unnest(b.seats) u order by u)

-- name: references_lead_home
-- Whatever was booked has a reference that leads to it, of its operator.
select 'booking:' || b.booking_id as entity, format('%s with reference %s', b.state, coalesce(b.reference, 'none')) as said
from booking.booking b
left join booking.reference r on r.reference = b.reference
where (b.reference is not null and (r.reference is null or r.lead_id <> b.lead_id or r.partner_id <> b.partner_id))
   or (b.reference is null and b.channel <> 'LEASE' and b.state in ('PENDING_PAYMENT', 'CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED'))

-- name: one_tenant_each
-- What belongs to a booking belongs to its operator, and that is the operator of the trip.
select 'booking:' || b.booking_id as entity, format('of %s on a trip of %s', b.partner_id, i.partner_id) as said
from booking.booking b join sale.trip_instance i using (trip_no) where i.partner_id <> b.partner_id
union all
select 'booking:' || c.booking_id, format('a claim of %s', c.partner_id)
from booking.seat_claim c join booking.booking b using (booking_id) where c.partner_id <> b.partner_id
union all
select 'booking:' || p.booking_id, format('a passenger of %s', p.partner_id)
from booking.passenger p join booking.booking b using (booking_id) where p.partner_id <> b.partner_id
union all
select 'booking:' || t.booking_id, format('a ticket of %s', t.partner_id)
from ticket.ticket t join booking.booking b using (booking_id) where t.partner_id <> b.partner_id

-- name: moves_are_in_the_table
-- A booking went only where the table of moves lets it, as its audit rows tell it, and stands where the last of them says.
select 'booking:' || m.entity_id as entity, format('%s -> %s at audit row %s', m.before, m.state, m.audit_id) as said
from (select entity_id, audit_id, diff->>'state' as state, lag(diff->>'state') over (partition by entity_id order by audit_id) as before
      from office.audit where entity_kind = 'booking' and diff ? 'version') m
where m.before <> m.state and not exists (select from booking.edge e where e.from_state = m.before and e.to_state = m.state)
union all
select 'booking:' || b.booking_id, format('is %s; its audit says %s', b.state, coalesce(l.state, 'nothing'))
from booking.booking b
left join lateral (select diff->>'state' as state from office.audit a
                   where a.entity_id = b.booking_id and a.entity_kind = 'booking' and a.diff ? 'version' order by a.audit_id desc limit 1) l on true
where l.state is distinct from b.state

-- name: every_version_is_audited
-- A booking has as many audit rows of its changes as it has versions: nothing was changed in silence.
select 'booking:' || b.booking_id as entity, format('version %s, versions in the audit: %s', b.version, coalesce(a.n, 0)) as said
from booking.booking b
left join (select entity_id, count(*) as n, count(distinct diff->>'version') as versions, max((diff->>'version')::int) as newest
           from office.audit where entity_kind = 'booking' and diff ? 'version' group by 1) a on a.entity_id = b.booking_id
where coalesce(a.n, 0) <> b.version or a.versions <> b.version or a.newest <> b.version

-- name: every_version_has_its_event
-- And as many events, where those are still kept.
select 'booking:' || b.booking_id as entity, format('version %s, events: %s', b.version, coalesce(o.n, 0)) as said
from booking.booking b
left join (select aggregate, count(*) as n, max(version) as newest from office.outbox where topic = 'booking' group by 1) o
  on o.aggregate = b.booking_id
where b.held_at > clock_timestamp() - $1::interval and (coalesce(o.n, 0) <> b.version or o.newest <> b.version)

-- name: confirmed_once
-- What is or was confirmed was confirmed once: one audit row booking.CONFIRMED and, where it is still kept, one event.
select 'booking:' || b.booking_id as entity, format('%s: confirmed %s times in the audit', b.state, coalesce(a.n, 0)) as said
from booking.booking b
left join (select entity_id, count(*) as n from office.audit where action = 'booking.CONFIRMED' and entity_kind = 'booking' group by 1) a
  on a.entity_id = b.booking_id
where coalesce(a.n, 0) > 1
   or (b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED', 'NO_SHOW', 'EXCHANGED') and coalesce(a.n, 0) = 0)
   or (b.state in ('HELD', 'PENDING_PAYMENT', 'RELEASED') and coalesce(a.n, 0) > 0)
union all
select 'booking:' || a.entity_id, format('confirmed by audit row %s, said %s times', a.audit_id, count(o.*))
from office.audit a
left join office.outbox o on o.topic = 'booking' and o.aggregate = a.entity_id and o.kind = 'CONFIRMED'
where a.action = 'booking.CONFIRMED' and a.at > clock_timestamp() - $1::interval
group by a.entity_id, a.audit_id
having count(o.*) <> 1

-- name: events_are_said_in_order
-- No event of an aggregate was said while an older one of it waits.
select o.topic || ':' || o.aggregate as entity, format('version %s was said at %s, version %s waits', o.version, o.delivered_at, w.version) as said
from office.outbox w
join office.outbox o on o.part = w.part and o.topic = w.topic and o.aggregate = w.aggregate and o.version > w.version
where w.delivered_at is null and o.delivered_at is not null

-- name: held_back_means_dead
-- Whatever is held back stands behind a dead letter that somebody can replay.
select o.topic || ':' || o.aggregate as entity, format('version %s is held back by nothing', o.version) as said
from office.outbox o
where o.parked and o.delivered_at is null and not exists (
  select from office.dead_letter d where d.part = o.part and d.topic = o.topic and d.aggregate = o.aggregate and d.state = 'HELD' and d.version <= o.version)

-- name: answers_speak_of_bookings
-- An answer kept under a key speaks of a booking that is there.
select 'key:' || i.key as entity, format('HELD booking %s, which is not there', i.answer->>'booking') as said
from office.idempotency i
where i.answer->>'status' = 'HELD' and i.answer ? 'booking'
  and not exists (select from booking.booking b where b.booking_id = (i.answer->>'booking')::uuid)

-- name: tickets_for_every_seat
-- A booking that is paid for has one ticket in force for each seat, on its trip and for its legs, and none else; one that is not has none.
select 'booking:' || b.booking_id as entity, format('%s with seats %s has tickets for %s', b.state, b.seats, t.seats) as said
from booking.booking b
left join lateral (select array_agg(k.seat order by k.seat) as seats, bool_and(k.trip_no = b.trip_no and k.legs = b.legs) as right_ones
                   from ticket.ticket k where k.booking_id = b.booking_id and k.state <> 'REVOKED') t on true
where case when b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED')
    then coalesce(t.seats, '{}') <> array(select u from unnest(b.seats) u order by u) or not coalesce(t.right_ones, true)
    else t.seats is not null and (b.state in ('HELD', 'PENDING_PAYMENT', 'RELEASED', 'EXPIRED', 'CANCELLED', 'EXCHANGED')
      or exists (select from office.audit a where a.entity_id = b.booking_id and a.action = 'booking.CANCELLED')) end

-- name: boarded_by_a_scan
-- Who boarded did so with a ticket that was used, and a used ticket's booking has boarded.
select 'ticket:' || t.ticket_id as entity, format('USED, and its booking is %s', b.state) as said
from ticket.ticket t join booking.booking b using (booking_id)
where t.state = 'USED' and b.state not in ('BOARDED', 'COMPLETED', 'CHECKED_IN', 'CONFIRMED', 'NO_SHOW', 'REFUNDED')
union all
select 'booking:' || b.booking_id, 'BOARDED, and none of its tickets was used'
from booking.booking b
where b.state = 'BOARDED' and not exists (select from ticket.ticket t where t.booking_id = b.booking_id and t.state = 'USED')

-- name: ledger_balances
-- Every transaction of the ledger adds up to nothing, in each currency, and is of one operator.
select 'txn:' || txn as entity, format('%s %s, operators: %s', currency, sum(debit) - sum(credit), count(distinct partner_id)) as said
from money.ledger
group by txn, currency
having sum(debit) <> sum(credit) or count(distinct partner_id) > 1

-- name: ledger_balances_in_all
-- All of the ledger adds up to nothing, for each operator and currency.
select 'partner:' || partner_id as entity, format('%s %s', currency, sum(debit) - sum(credit)) as said
from money.ledger
group by partner_id, currency
having sum(debit) <> sum(credit)

-- name: captured_is_the_ledgers
-- What a payment took is what the ledger says it took, and what a provider said.
select 'payment:' || p.payment_id as entity, format('captured %s, in the ledger %s', p.captured, coalesce(l.got, 0)) as said
from money.payment p
left join (select payment_id, sum(debit) as got from money.ledger where kind in ('CAPTURED', 'CASH_TAKEN') group by 1) l using (payment_id)
where p.captured <> coalesce(l.got, 0)
union all
select 'payment:' || p.payment_id, format('captured %s, and %s never said so', p.captured, p.provider)
from money.payment p
where p.captured > 0 and p.provider <> 'CASH'
  and not exists (select from money.fact f where f.payment_id = p.payment_id and f.kind in ('CAPTURED', 'REFUNDED', 'CHARGED_BACK'))

-- name: refunds_within_what_was_paid
-- Nothing negative is paid back, and never more than was taken; a payment's refunds are the refunds there are, paid as the ledger says.
select 'payment:' || p.payment_id as entity,
       format('captured %s, refunded %s, refunds there are %s, charged back %s', p.captured, p.refunded, coalesce(r.back, 0), p.charged_back) as said
from money.payment p
left join (select payment_id, sum(amount) filter (where state <> 'SUPERSEDED') as back, min(amount) as least from money.refund group by 1) r
  using (payment_id)
where p.refunded <> coalesce(r.back, 0) or p.refunded < 0 or p.charged_back < 0 or r.least <= 0 or p.refunded > p.captured
   or p.charged_back > p.captured
union all
select 'payment:' || r.payment_id, format('refunds done %s, paid in the ledger %s', r.done, coalesce(l.paid, 0))
from (select payment_id, coalesce(sum(amount) filter (where state = 'DONE'), 0) as done from money.refund group by 1) r
left join (select payment_id, sum(debit) as paid from money.ledger where kind = 'REFUND_PAID' and account = 'REFUNDS' group by 1) l using (payment_id)
where r.done <> coalesce(l.paid, 0)

-- name: paid_has_its_seat
-- Nobody has paid and has no seat: money that is kept belongs to a booking that stands, has stood, or is offered other seats.
select 'payment:' || p.payment_id as entity, format('%s of %s kept, its booking is %s', p.captured - p.refunded, p.captured, b.states) as said
from money.payment p
join lateral (select array_agg(state)::text as states,
                bool_or(state not in ('HELD', 'PENDING_PAYMENT', 'EXPIRED', 'RELEASED')) as stood
              from booking.booking o where o.lead_id = p.lead_id) b on true
where p.state = 'CONFIRMED' and p.captured > p.refunded + p.charged_back and not coalesce(b.stood, false)

-- name: seat_is_paid_for
-- Nobody sits for nothing: a booking that stands and costs something has a payment that was earned.
select 'booking:' || b.lead_id as entity, format('%s for %s %s', min(b.state), sum(b.total), min(b.currency)) as said
from booking.booking b
where b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED') and b.channel <> 'LEASE'
group by b.lead_id
having sum(b.total) > 0 and not exists (select from money.payment p where p.lead_id = b.lead_id and p.earned)

-- name: settlements_add_up
-- What was paid out to an operator is what the ledger owed it to the end of the period, and the periods follow one another.
select 'settlement:' || s.settlement_id as entity,
       format('%s %s to %s: owed so far %s, paid so far %s, carried %s', s.partner_id, s.currency, s.to_at, o.owed, o.paid, s.carried) as said
from money.settlement s
join lateral (
  select coalesce((select sum(l.credit - l.debit) from money.ledger l where l.partner_id = s.partner_id and l.currency = s.currency
                   and l.account = 'PARTNER' and l.kind <> 'PAYOUT' and l.at < s.to_at), 0) as owed,
         coalesce((select sum(x.amount) from money.settlement x where x.partner_id = s.partner_id and x.currency = s.currency
                   and x.to_at <= s.to_at), 0) as paid) o on true
where o.owed <> o.paid + s.carried
union all
select 'settlement:' || s.settlement_id, format('pays out %s, its transaction %s says %s', s.amount, s.txn, coalesce(l.paid, 0))
from money.settlement s
left join (select txn, sum(debit) as paid from money.ledger where kind = 'PAYOUT' and account = 'PARTNER' group by 1) l using (txn)
where s.amount <> coalesce(l.paid, 0)
union all
select 'settlement:' || n.settlement_id, format('begins at %s; the one before ends at %s', n.from_at, n.before)
from (select settlement_id, from_at, lag(to_at) over (partition by partner_id, currency order by to_at) as before from money.settlement) n
where n.before <> n.from_at

-- name: promo_codes_within_their_uses
-- No promo code has been used more often than it may.
select 'promo:' || c.partner_id || ':' || c.code as entity, format('used %s times of %s', u.n, c.max_uses) as said
from sale.promo_code c
join lateral (select count(*) as n from sale.promo_use s
              where s.partner_id = c.partner_id and s.code = c.code and s.person = '' and exists (
                select from booking.booking b where b.lead_id = s.lead_id and b.state not in ('EXPIRED', 'RELEASED', 'CANCELLED', 'REFUNDED'))) u on true
where u.n > c.max_uses

-- name: ancillaries_in_stock
-- No more baggage, meals and the like are sold on a trip than there are.
select 'trip:' || a.trip_no as entity, format('%s: %s sold of %s', a.code, sum(a.count), max(a.stock)) as said
from booking.ancillary a
join booking.booking b using (booking_id)
where b.state not in ('EXPIRED', 'RELEASED', 'CANCELLED', 'REFUNDED', 'EXCHANGED') and a.stock is not null
group by a.trip_no, a.code
having sum(a.count) > max(a.stock)

-- name: leases_belong_to_devices
-- Seats leased to a device are held by a booking of channel LEASE, on the lease's trip and within its legs, and such bookings have a lease.
select 'lease:' || l.lease_id as entity, format('its booking is %s on trip %s, legs %s', b.channel, b.trip_no, b.legs) as said
from pos.lease l
join booking.booking b on b.lead_id = l.lease_id
where b.state = 'HELD' and (b.channel <> 'LEASE' or b.trip_no <> l.trip_no or not b.legs <@ l.legs or b.partner_id <> l.partner_id)
union all
select 'booking:' || b.booking_id, 'a lease of no device'
from booking.booking b
where b.channel = 'LEASE' and b.state = 'HELD' and not exists (select from pos.lease l where l.lease_id = b.lead_id)

-- name: offline_sales_have_their_seats
-- What a device sold offline and we confirmed has a booking on its trip with that money; what we refused has no seat.
select 'sale:' || s.device_id || ':' || s.seq as entity, format('%s, its booking is %s', s.result, coalesce(b.state, 'not there')) as said
from pos.sale s
left join booking.booking b on b.booking_id = s.booking_id
where case s.result when 'CONFIRMED' then b.booking_id is null or b.trip_no <> s.trip_no or b.state in ('HELD', 'PENDING_PAYMENT', 'EXPIRED', 'RELEASED')
    when 'CONFLICT_REFUND' then b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED')
    when 'STANDBY' then b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED', 'COMPLETED')
    else b.state in ('HELD', 'PENDING_PAYMENT') end

-- name: drawers_are_counted
-- The difference of a closed cash session is what was counted less what was expected.
select 'session:' || session_id as entity, format('expected %s, counted %s, difference %s', expected, counted, difference) as said
from pos.session
where closed_at is not null and (expected is null or counted is null or difference is distinct from counted - expected)

-- name: trips_have_stops_and_a_map
-- A trip on sale has all its stops, in order and forwards in time, and the seat map that it says it has.
select 'trip:' || i.trip_id as entity, format('%s stops of %s, map %s %s', coalesce(s.n, 0), i.stops, i.map_version,
    case when m.trip_no is null then 'is missing' else 'is there' end) as said
from sale.trip_instance i
left join (select trip_no, count(*) as n, min(place) as first, max(place) as last, bool_and(arrives_at >= before) as forwards
           from (select *, coalesce(lag(departs_at) over (partition by trip_no order by place), arrives_at) as before from sale.trip_stop) t
           group by 1) s using (trip_no)
left join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version
where s.n is distinct from i.stops or s.first <> 0 or s.last <> i.stops - 1 or not s.forwards or m.trip_no is null
