-- name: hold
-- All seats or none, held for a while, with its answer, audit row and event: the whole call in one round trip.
select booking.hold($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)

-- name: release
-- Let go of a hold, or of a booking that nobody has paid.
select booking.release($1, $2, $3, $4, $5)

-- name: extend
-- Hold longer, within the longest life of a hold.
select booking.extend($1, $2, $3, $4, $5)

-- name: book
-- One or two holds become a booking under a reference, its passengers named.
select booking.book($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: shown
-- A booking as people see it, by reference or by the id of one of its rows.
select booking.shown($1, $2)

-- name: lookup
-- The booking of a reference, if one of its passengers has that surname (folded).
select booking.shown(reference, null) from booking.reference where reference = $1 and $2 = any(surnames)

-- name: of_holder
-- Bookings of one customer, newest first, from a given time on backwards.
select reference, lead_id, min(state) as state, max(held_at) as held_at, min(trip_no) as trip_no
from booking.booking where holder = $1 and reference is not null and held_at < $2
group by reference, lead_id order by max(held_at) desc limit $3

-- name: of_partner
-- Bookings of one operator, newest first, from a given time on backwards; of one trip where it is named.
select reference, lead_id, min(state) as state, max(held_at) as held_at, min(trip_no) as trip_no
from booking.booking where partner_id = $1 and reference is not null and held_at < $2 and ($4::bigint is null or trip_no = $4)
group by reference, lead_id order by max(held_at) desc limit $3
