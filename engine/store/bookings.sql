-- name: hold
-- All seats or none, held for a while, with its answer, audit row and event: the whole call in one round trip.
select booking.hold($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)

-- name: hold_many
-- Holds of many callers on one trip: all seats or none for each, in one transaction; RETRY for those that would have to wait.
select booking.hold_many($1, $2, $3, $4)

-- name: release_many
-- Ends of holds of many callers, likewise.
select booking.release_many($1)

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
-- Bookings of one customer, newest first, from one of them on.
select min(reference) as reference, lead_id::text from booking.booking where holder = $1 and reference is not null and lead_id < $2::uuid
group by lead_id order by lead_id desc limit $3

-- name: of_partner
-- Bookings of one operator, newest first, from one of them on. An exchange leaves a booking with two references.
select min(reference) as reference, lead_id::text from booking.reference where partner_id = $1 and lead_id < $2::uuid
group by lead_id order by lead_id desc limit $3

-- name: of_trip
-- The same of one trip.
select min(reference) as reference, lead_id::text from booking.booking
where trip_no = $4 and partner_id = $1 and reference is not null and lead_id < $2::uuid group by lead_id order by lead_id desc limit $3
