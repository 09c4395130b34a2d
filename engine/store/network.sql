-- name: lift_limit
-- For this transaction only: the pool's limit is made for requests.
select set_config('statement_timeout', $1, true)

-- name: make_partner
-- The partner of a feed, made by name where it is new.
insert into public.partner (partner_id, name) values ($1, $1) on conflict do nothing

-- name: lock_feed
-- The feed's row, made where it is new, held to the end of the transaction: imports of one feed follow one another. $3: it may change hands.
insert into network.feed as f (feed_id, partner_id) values ($1, $2)
on conflict (feed_id) do update set partner_id = case when $3 then $2 else f.partner_id end
returning partner_id, active_version_id

-- name: partner_of_feed
-- Whose the feed is, null where it is new.
select partner_id from network.feed where feed_id = $1

-- name: same_versions
-- Kept versions that were made of the same zip, the newest first.
select version_id, version from network.feed_version where feed_id = $1 and sha256 = $2 order by version_id desc

-- name: add_version
-- A new version; its tables are filled by COPY in the same transaction.
insert into network.feed_version (feed_id, version, sha256, timezone, info) values ($1, $2, $3, $4, $5::text::jsonb) returning version_id

-- name: activate
-- From the commit on, this version is in force.
update network.feed set active_version_id = $2, activated_at = clock_timestamp() where feed_id = $1

-- name: prune
-- All but the newest versions of a feed; the one in force always stays. Trips under way are driven from memory, old ids stay readable.
delete from network.feed_version v
where v.feed_id = $1 and v.version_id is distinct from (select active_version_id from network.feed where feed_id = $1)
  and v.version_id not in (select version_id from network.feed_version where feed_id = $1 order by version_id desc limit $2)

-- name: feeds
-- What is in force; workers ask every few seconds, so it touches two small tables only.
select f.feed_id, f.partner_id, v.version, v.version_id, v.timezone, v.imported_at, f.activated_at
from network.feed f join network.feed_version v on v.version_id = f.active_version_id
order by f.feed_id

-- name: version
-- One version of a feed: the given one, or the one in force.
select v.version_id, v.version, v.timezone
from network.feed f
join network.feed_version v on v.feed_id = f.feed_id
  and case when $2::text is null then v.version_id = f.active_version_id else v.version = $2 end
where f.feed_id = $1

-- name: versions
-- The kept versions of a feed, the newest first, with what was said about them at import.
select v.version, v.sha256, v.imported_at, v.info::text as info, v.version_id = f.active_version_id as active
from network.feed_version v join network.feed f using (feed_id)
where feed_id = $1
order by v.version_id desc

-- name: agencies
-- Of one version.
select agency_id, name, timezone, url from network.agency where version_id = $1 order by agency_id

-- name: stops
-- Of one version.
select stop_id, name, lat, lon, code, parent_station, location_type, platform, wheelchair from network.stop where version_id = $1 order by stop_id

-- name: routes
-- Of one version.
select route_id, agency_id, short_name, long_name, kind, color, text_color, sort_order from network.route where version_id = $1 order by route_id

-- name: services
-- Of one version.
select service_id, weekdays, starts_on, ends_on, added, removed from network.service where version_id = $1 order by service_id

-- name: shapes
-- Of one version; the line as well-known binary, so that every coordinate comes back to the last bit.
select shape_id, st_asbinary(line, 'NDR') as line from network.shape where version_id = $1 order by shape_id

-- name: patterns
-- Of one version.
select pattern_id, route_id, direction_id, shape_id, stop_ids, stop_sequences, along_m, timepoint, from_stops
from network.pattern where version_id = $1 order by pattern_id

-- name: trips
-- Of one version.
select trip_id, route_id, service_id, pattern_id, arrival_s, departure_s, headsign, block_id, short_name, frequency_of, bikes, wheelchair
from network.trip where version_id = $1 order by trip_id

-- name: geometry_schema
-- Where PostGIS lives, for the codec of COPY.
select n.nspname from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'postgis'
