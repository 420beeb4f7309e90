// A backend for the StatsD daemon: prints its report of each flush as a line of JSON.
exports.init = (_startup, _config, events) => {
  events.on('flush', (_timestamp, { counters, gauges, timers, timer_counters }) => {
    console.log(JSON.stringify({ counters, gauges, timers, timer_counters }));
  });
  return true;
};
