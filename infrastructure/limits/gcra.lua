-- All policies of one request at once, as `gcra.py` has them; of several requests, one after the other. For each
-- request the arguments are: of how many keys, and then of each key microseconds in which one more may come, how many
-- may come at once, and 1 if what is too much is refused. Returns for each key the microseconds until it would pass.
-- The time is Redis' own, so that the clocks of the processes do not matter.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function keep(key, tat)
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000))
end

local waits, key_at, argument_at = {}, 1, 1
while argument_at <= #ARGV do
    local keys, paid, passes = tonumber(ARGV[argument_at]), {}, true
    for i = 0, keys - 1 do
        local at = argument_at + 3 * i
        local interval, burst, enforced = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3] == '1'
        local full = now + interval * burst
        -- What is no number, or not even text, is nothing of ours: it is written over.
        local key = KEYS[key_at + i]
        local stored = redis.pcall('GET', key)
        local tat = math.max(now, type(stored) == 'string' and tonumber(stored) or now)
        if tat > full then  -- the clock was set back
            tat = full
            keep(key, tat)
        end
        paid[i] = tat + interval
        waits[key_at + i] = math.max(0, paid[i] - full)
        if enforced and waits[key_at + i] > 0 then passes = false end
    end
    for i = 0, keys - 1 do
        if passes and waits[key_at + i] == 0 then keep(KEYS[key_at + i], paid[i]) end
    end
    key_at, argument_at = key_at + keys, argument_at + 1 + 3 * keys
end
return waits
