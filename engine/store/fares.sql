-- name: fare_plan
-- One fare plan of one operator, retired or not: trips that were put on sale with it go on.
select body, version from sale.fare_plan where partner_id = $1 and fare_plan_id = $2

-- name: occupancy
-- Permille of a trip's seats that are taken, leg by leg.
select sale.occupancy($1, $2, $3)

-- name: note_multiplier
-- A trip's multiplier, noted where it has changed.
select sale.note_multiplier($1, $2, $3, $4, $5)

-- name: promo
-- One promo code of one operator.
select * from sale.promo_code where partner_id = $1 and code = $2

-- name: keep_quote
-- A quote that somebody was given.
insert into sale.price_log (price_id, partner_id, trip_no, kind, valid_until, multiplier, body) values ($1, $2, $3, 'QUOTE', $4, $5, $6)

-- name: quote
-- A quote that is still good.
select body from sale.price_log where price_id = $1 and trip_no = $2 and kind = 'QUOTE' and valid_until > clock_timestamp()

-- name: ancillaries_taken
-- How many of each thing are taken on a trip.
select code, sale.ancillaries_taken($1, code, '{}') as taken from unnest($2::text[]) code

-- name: fare_plans
-- An operator's fare plans by id, from a cursor on ('*': every operator's).
select partner_id, fare_plan_id as id, name, body, version, changed_at, retired_at from sale.fare_plan
where ($1 = '*' or partner_id = $1) and (fare_plan_id, partner_id) > ($2, $3) and (retired_at is null or $5)
order by fare_plan_id, partner_id limit $4

-- name: fare_plan_for_update
-- One fare plan, locked to the end of the transaction.
select partner_id, fare_plan_id as id, name, body, version, changed_at, retired_at from sale.fare_plan
where partner_id = $1 and fare_plan_id = $2 for update

-- name: add_fare_plan
-- A new fare plan; no row where the id is taken.
insert into sale.fare_plan (partner_id, fare_plan_id, name, currency, body) values ($1, $2, $3, $4, $5)
on conflict do nothing returning partner_id, fare_plan_id as id, name, body, version, changed_at, retired_at

-- name: change_fare_plan
-- The next version of a fare plan.
update sale.fare_plan set name = $3, body = $4, retired_at = $5, version = version + 1, changed_at = clock_timestamp()
where partner_id = $1 and fare_plan_id = $2 returning partner_id, fare_plan_id as id, name, body, version, changed_at, retired_at

-- name: promo_codes
-- An operator's promo codes, from a cursor on, with the uses that count.
select c.*, sale.promo_uses(c.partner_id, c.code, '', '00000000-0000-0000-0000-000000000000') as used from sale.promo_code c
where ($1 = '*' or c.partner_id = $1) and (c.code, c.partner_id) > ($2, $3) and (c.retired_at is null or $5)
order by c.code, c.partner_id limit $4

-- name: promo_code_for_update
-- One promo code with its uses, locked to the end of the transaction.
select c.*, sale.promo_uses(c.partner_id, c.code, '', '00000000-0000-0000-0000-000000000000') as used from sale.promo_code c
where c.partner_id = $1 and c.code = $2 for update

-- name: add_promo_code
-- A new promo code; no row where it is there already.
insert into sale.promo_code (partner_id, code, kind, value, currency, min_amount, valid_from, valid_to, route_ids, max_uses, max_uses_each)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict do nothing returning *, 0 as used

-- name: change_promo_code
-- The next version of a promo code. Its kind and value stay: what was given under a code must be what the code says.
update sale.promo_code set min_amount = $3, valid_from = $4, valid_to = $5, route_ids = $6, max_uses = $7, max_uses_each = $8, retired_at = $9,
  version = version + 1, changed_at = clock_timestamp()
where partner_id = $1 and code = $2
returning *, sale.promo_uses(partner_id, code, '', '00000000-0000-0000-0000-000000000000') as used

-- name: offers
-- An operator's offers by route, from a cursor on ('*': every operator's); seats kept for women by label.
select o.*, array(select l.body->'seats'->(n - 1)->>'label' from unnest(o.women_only_seats) n) as women_only
from sale.offer o join sale.seat_layout l using (partner_id, layout_id)
where ($1 = '*' or o.partner_id = $1) and o.route_id > $2 and (o.retired_at is null or $4) order by o.route_id limit $3

-- name: offer_for_update
-- One offer, locked to the end of the transaction.
select o.*, array(select l.body->'seats'->(n - 1)->>'label' from unnest(o.women_only_seats) n) as women_only
from sale.offer o join sale.seat_layout l using (partner_id, layout_id) where o.route_id = $1 and o.partner_id = $2 for update of o

-- name: add_offer
-- A new offer; a route is offered once, and one whose offer was retired may be offered again by the same operator. No row: it is taken.
insert into sale.offer as o (partner_id, route_id, layout_id, fare_plan_id, open_days, close_s, women_only_seats) values ($1, $2, $3, $4, $5, $6, $7)
on conflict (route_id) do update set layout_id = $3, fare_plan_id = $4, open_days = $5, close_s = $6, women_only_seats = $7, retired_at = null,
  version = o.version + 1, changed_at = clock_timestamp() where o.retired_at is not null and o.partner_id = $1
returning version

-- name: change_offer
-- The next version of an offer. Trips that are on sale already stay as they are.
update sale.offer set layout_id = $3, fare_plan_id = $4, open_days = $5, close_s = $6, women_only_seats = $7, retired_at = $8,
  version = version + 1, changed_at = clock_timestamp()
where route_id = $1 and partner_id = $2

-- name: offered_with
-- A route that is offered with a fare plan.
select route_id from sale.offer where partner_id = $1 and fare_plan_id = $2 and retired_at is null limit 1

-- name: note_change
-- Audit row and event of a change to what an operator offers.
select sale.note_change($1, $2, $3, $4, $5, $6, $7, $8)

-- name: layout_body
-- A seat layout, retired or not.
select body from sale.seat_layout where partner_id = $1 and layout_id = $2

-- name: offerable
-- Whether an operator has a layout or a fare plan that may be offered.
select exists (select from sale.seat_layout where partner_id = $1 and layout_id = $2 and retired_at is null) as layout,
  exists (select from sale.fare_plan where partner_id = $1 and fare_plan_id = $3 and retired_at is null) as plan
