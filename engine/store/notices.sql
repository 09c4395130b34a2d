-- name: cursor
-- How far a reader has come.
select cursor from office.reader where name = $1

-- name: keep_cursor
-- How far it is now, in the transaction of what it did.
insert into office.reader (name, cursor) values ($1, $2)
on conflict (name) do update set cursor = excluded.cursor, at = clock_timestamp()

-- name: word
-- What was said of an incident so far; its row is locked to the end of the transaction.
insert into office.incident_word (incident_id, partner_id, trip_id) values ($1, $2, $3)
on conflict (incident_id) do update set at = clock_timestamp()
returning seq, told, severity

-- name: said
-- What has been said of it now.
update office.incident_word set seq = $2, told = $3, severity = $4 where incident_id = $1

-- name: told_on_trip
-- How often passengers of a trip instance were told something.
select coalesce(sum(told), 0)::int from office.incident_word where trip_id = $1 and told > 0

-- name: say
-- An event into the outbox.
select office.say($1, $2, $3, $4::uuid, $5, $6)

-- name: passengers
-- Bookings of a trip instance whose passengers ride it, by reference, with the stops (stop sequences) between which they do.
select b.reference as ref, min(b.holder) as holder, min(f.stop_sequence) as from_seq, max(t.stop_sequence) as to_seq
from sale.trip_instance i join booking.booking b on b.trip_no = i.trip_no
join sale.trip_stop f on f.trip_no = i.trip_no and f.place = lower(b.legs)
join sale.trip_stop t on t.trip_no = i.trip_no and t.place = upper(b.legs)
where i.trip_id = $1 and b.state in ('CONFIRMED', 'CHECKED_IN', 'BOARDED') and b.reference is not null
group by b.reference order by b.reference limit $2

-- name: followers
-- Who hears of such an incident of an operator.
select subject from office.follower
where partner_id = $1 and (kinds = '{}' or $2 = any (kinds))
  and array_position(array['MINOR', 'MAJOR', 'CRITICAL'], severity) <= array_position(array['MINOR', 'MAJOR', 'CRITICAL'], $3)
order by subject limit $4

-- name: sweep
-- What was said of incidents that are long over, a slice; how many rows went.
with gone as (
  delete from office.incident_word where incident_id in (
    select incident_id from office.incident_word where at < clock_timestamp() - $1::interval order by at limit $2) returning 1)
select count(*) from gone

-- name: following
-- What somebody follows of an operator.
select severity, kinds from office.follower where partner_id = $1 and subject = $2

-- name: follow
-- Follows, or follows otherwise.
insert into office.follower (partner_id, subject, severity, kinds) values ($1, $2, $3, $4)
on conflict (partner_id, subject) do update set severity = excluded.severity, kinds = excluded.kinds, changed_at = clock_timestamp()

-- name: unfollow
-- Follows no more.
delete from office.follower where partner_id = $1 and subject = $2
