-- All policies of one request at once, as `gcra.py` has them. Of each key in KEYS the arguments are: microseconds
-- in which one more may come, how many may come at once, and 1 if what is too much is refused. Returns for each the
-- microseconds until it would pass. The time is Redis' own, so that the clocks of the processes do not matter.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function keep(key, tat)
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
end
local waits, paid, passes = {}, {}, true
for i, key in ipairs(KEYS) do
    local interval, burst, enforced = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), ARGV[3 * i] == '1'
    local full = now + interval * burst
    -- What is no number, or not even text, is nothing of ours: it is written over.
    local stored = redis.pcall('GET', key)
    local tat = type(stored) == 'string' and tonumber(stored) or now
    tat = math.max(now, tat)
    if tat > full then  -- the clock was set back
        tat = full
        keep(key, tat)
    end
    tat = tat + interval
    waits[i] = math.max(0, tat - full)
    paid[i] = tat
    if enforced and waits[i] > 0 then passes = false end
end
if passes then
    for i, key in ipairs(KEYS) do
        if waits[i] == 0 then keep(key, paid[i]) end
    end
end
return waits
