-- name: layouts
-- An operator's seat layouts by id, from a cursor on ('*': every operator's).
select partner_id, layout_id as id, name, body, version, changed_at, retired_at from sale.seat_layout
where ($1 = '*' or partner_id = $1) and (layout_id, partner_id) > ($2, $3) and (retired_at is null or $5)
order by layout_id, partner_id limit $4

-- name: layout_for_update
-- One seat layout, locked to the end of the transaction.
select partner_id, layout_id as id, name, body, version, changed_at, retired_at from sale.seat_layout
where partner_id = $1 and layout_id = $2 for update

-- name: add_layout
-- A new seat layout; no row where the id is taken.
insert into sale.seat_layout (partner_id, layout_id, name, body) values ($1, $2, $3, $4)
on conflict do nothing returning partner_id, layout_id as id, name, body, version, changed_at, retired_at

-- name: change_layout
-- The next version of a seat layout.
update sale.seat_layout set name = $3, body = $4, retired_at = $5, version = version + 1, changed_at = clock_timestamp()
where partner_id = $1 and layout_id = $2 returning partner_id, layout_id as id, name, body, version, changed_at, retired_at

-- name: offers_of_layout
-- Routes that are offered with a layout, and the numbers of the seats that each keeps for women.
select route_id, women_only_seats from sale.offer where partner_id = $1 and layout_id = $2 and retired_at is null order by route_id
