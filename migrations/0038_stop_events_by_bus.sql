-- What one bus did at stops in a stretch of time (playback): a day of a fleet lies between two of its calls.
create index stop_events_bus on telemetry.stop_events (bus_id, at);
