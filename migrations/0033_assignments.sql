-- Who drove a trip, and why: read by trip (api/assignments.py).
create index trip_events_trip on telemetry.trip_events (trip_id, start_date, at);
