-- name: seats_taken
-- The seat map of a trip that is in force, and the claims on it.
select sale.seats_taken($1)

-- name: find
-- Rides on sale between two places.
select sale.find($1, $2, $3, $4, $5)

-- name: find_trips
-- Sold trips by their ids, on their whole way.
select sale.find_trips($1)

-- name: seats_free
-- Free seats of many rides at once.
select sale.seats_free($1, $2, $3)

-- name: places_like
-- Suggestions for what somebody types.
select sale.places_like($1, $2)

-- name: popular
-- Routes on sale by how often they were booked.
select sale.popular($1, $2)
