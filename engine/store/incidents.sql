-- name: incidents
-- Episodes of some areas, newest first, opened before $2, or at $2 with an id after $3; narrowed by kinds, severities, bus, trip, route, from,
-- and $11: only those that go on and that nobody has closed. Null: any.
select incident_id, area, kind, severity, bus_id, trip_id, start_date, route_id, opened_at, closed_at, lat, lon, detail::text as detail,
       handled_by, handled_at, handled_state, assigned_to
  from telemetry.incidents
 where area = any($1::text[]) and opened_at <= $2 and (opened_at < $2 or ($3 <> '' and incident_id > $3))
   and ($4::text[] is null or kind = any($4)) and ($5::text[] is null or severity = any($5)) and ($6::text is null or bus_id = $6)
   and ($7::text is null or trip_id = $7) and ($8::text is null or start_date = $8) and ($9::text is null or route_id = $9)
   and ($10::timestamptz is null or opened_at >= $10)
   and (not $11 or (closed_at is null and handled_state is distinct from 'CLOSED'))
 order by opened_at desc, incident_id limit $12;

-- name: incident
-- One episode of one of these areas.
select incident_id, area, kind, severity, bus_id, trip_id, start_date, route_id, opened_at, closed_at, lat, lon, detail::text as detail,
       handled_by, handled_at, handled_state, assigned_to
  from telemetry.incidents where incident_id = $1 and area = any($2::text[]);

-- name: handlings
-- What people did with it, oldest first.
select state, handled_by, at, assigned_to, note from telemetry.incident_handlings where incident_id = $1 order by handling_id limit 200;

-- name: handle
-- One step of a person: DONE, SAME, CLOSED, or null.
select telemetry.handle_incident($1, $2::text[], $3::text[], $4, $5, $6, $7, $8, $9, $10);

-- name: called
-- The audit row of a call for help.
select telemetry.called($1, $2, $3, $4, $5::jsonb);
