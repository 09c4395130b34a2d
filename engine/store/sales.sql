-- name: offers_in_force
-- Every offer with what it needs: its layout, and the currency of its fares.
select o.partner_id, o.route_id, o.layout_id, o.fare_plan_id, o.open_days, o.close_s, o.women_only_seats, l.body as layout, p.currency
from sale.offer o join sale.seat_layout l using (partner_id, layout_id) join sale.fare_plan p using (partner_id, fare_plan_id)
where o.retired_at is null order by o.route_id

-- name: known_trips
-- Trips of a route that were put on sale and leave within a while.
select trip_id, departs_at, status from sale.trip_instance where route_id = $1 and departs_at >= $2 and departs_at < $3

-- name: known_ids
-- Of these trips, those that were put on sale at any time.
select trip_id from sale.trip_instance where trip_id = any($1::text[])

-- name: open_trips
-- Trips of one offer go on sale; those that are known stay as they are. How many were new.
select sale.open_trips($1, $2, $3, $4)

-- name: end_trips
-- Sales that are over end, trips that have arrived are over.
select sale.end_trips($1, $2, $3)

-- name: on_sale
-- Trips on sale, the next ones first, with the seats that are free on the whole way ('*': of every operator).
select i.trip_id, i.route_id, i.headsign, i.departs_at, i.closes_at, i.currency, i.status, cardinality(m.seats) - (
    select count(distinct c.seat) from booking.seat_claim c where c.trip_no = i.trip_no and c.map_version = i.map_version and c.active)::int as free
from sale.trip_instance i join sale.seat_map m on m.trip_no = i.trip_no and m.map_version = i.map_version
where i.sales_open and i.closes_at > clock_timestamp() and ($1 = '*' or i.partner_id = $1) and ($2::text is null or i.route_id = $2)
order by i.departs_at, i.trip_id limit $3

-- name: add_layout
-- A seat layout, where the operator has none of that id.
insert into sale.seat_layout (partner_id, layout_id, name, body) values ($1, $2, $3, $4) on conflict do nothing
