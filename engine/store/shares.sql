-- name: make
-- A link to one trip, with its audit row.
select sharing.make($1, $2, $3, $4, $5, $6, $7, to_timestamp($8::bigint / 1000.0), to_timestamp($9::bigint / 1000.0), $10, $11)

-- name: link
-- The link behind a token.
select trip_id, partner_id, from_seq, to_seq, expires_at, ended_at from sharing.link where token_sha256 = $1

-- name: finish
-- Ended by its maker, with its audit row; false: that maker has no such link.
select sharing.finish($1, $2, to_timestamp($3::bigint / 1000.0), $4, $5)
