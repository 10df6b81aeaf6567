/* A stand-in for libnvidia-ml.so.1 that exports the few symbols an energy meter calls.
 *
 * Each GPU draws LOW_W until the moment SWITCH_S of the monotonic clock and HIGH_W after it, so that a test knows the
 * truth of any window; its counter ticks every 100 ms as the real one does. Environment variables say the rest:
 *
 *   SHIM_GPUS=n            number of GPUs
 *   SHIM_LOW_W=a,b  SHIM_HIGH_W=a,b  SHIM_SWITCH_S=t
 *   SHIM_NO_COUNTER=i  SHIM_NO_INSTANT=i  SHIM_MIG=i      that GPU lacks it, or is sliced
 *   SHIM_THROTTLE=bits     clocks event reasons of GPU 1
 *   SHIM_INIT=code         what nvmlInit returns
 *   SHIM_LOST_S=t          GPU 0 is lost from that moment on
 *   SHIM_SENSOR=share      polled power is this share of the truth
 *   SHIM_WORK=file         a double in that file, joules that a server's requests took so far, comes on top for GPU 0
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, LOST = 15 };

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency;
    uint32_t type, result;
    union { double d; unsigned int ui; unsigned long long ull; } value;
} field_value;

typedef struct { unsigned int version, sensor; int temperature; } temperature_v1;

static double setting(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text && *text ? atof(text) : otherwise;
}

static double nth(const char *name, int index) {
    const char *text = getenv(name);
    for (; text && index; index--) {
        text = strchr(text, ',');
        if (text) text++;
    }
    return text ? atof(text) : 100.0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int index_of(void *device) { return (int)(intptr_t)device - 1; }

static int lost(void *device) { return index_of(device) == 0 && now() >= setting("SHIM_LOST_S", 1e18); }

static double work(void *device) {
    const char *path = getenv("SHIM_WORK");
    int file = path && index_of(device) == 0 ? open(path, O_RDONLY) : -1;
    double joules = 0;
    if (file >= 0 && pread(file, &joules, sizeof joules, 0) != sizeof joules) joules = 0;
    if (file >= 0) close(file);
    return joules;
}

/* Mean power of the work over the last 200 ms or so. */
static double work_watts(void *device, double t) {
    static double last_t, last_j, last_w;
    if (index_of(device) != 0) return 0;
    if (t - last_t >= 0.2) {
        double j = work(device);
        last_w = (j - last_j) / (t - last_t), last_t = t, last_j = j;
    }
    return last_w;
}

static double watts(void *device, double t) {
    double flat = nth(t < setting("SHIM_SWITCH_S", 1e18) ? "SHIM_LOW_W" : "SHIM_HIGH_W", index_of(device));
    return flat + (getenv("SHIM_WORK") ? work_watts(device, t) : 0);
}

static double joules(void *device, double t) {
    double at = setting("SHIM_SWITCH_S", 1e18), low = nth("SHIM_LOW_W", index_of(device));
    return t < at ? low * t : low * at + nth("SHIM_HIGH_W", index_of(device)) * (t - at);
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return (int)setting("SHIM_INIT", SUCCESS); }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) { snprintf(text, size, "570.00-shim"); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = (unsigned int)setting("SHIM_GPUS", 1); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (index >= (unsigned int)setting("SHIM_GPUS", 1)) return INVALID;
    *device = (void *)(intptr_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *text, unsigned int size) {
    (void)device; snprintf(text, size, "Shim 100"); return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned int size) {
    snprintf(text, size, "GPU-%d0000000-feed", index_of(device)); return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
    if (!getenv("SHIM_MIG")) return NOT_SUPPORTED;
    *current = *pending = index_of(device) == (int)setting("SHIM_MIG", -1);
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    if (lost(device)) return LOST;
    if (index_of(device) == (int)setting("SHIM_NO_COUNTER", -1)) return NOT_SUPPORTED;
    double ticked = (double)(long long)(now() * 10) / 10;
    *mj = (unsigned long long)((joules(device, ticked) + work(device)) * 1000);
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(void *device, int count, field_value *values) {
    for (int i = 0; i < count; i++) {
        int there = index_of(device) != (int)setting("SHIM_NO_INSTANT", -1);
        values[i].result = there ? SUCCESS : NOT_SUPPORTED;
        values[i].value.ui = (unsigned int)(1000 * watts(device, now()) * setting("SHIM_SENSOR", 1));
    }
    return lost(device) ? LOST : SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *mw) {
    *mw = (unsigned int)(1000 * watts(device, now()) * setting("SHIM_SENSOR", 1));
    return lost(device) ? LOST : SUCCESS;
}

int nvmlDeviceGetTemperatureV(void *device, temperature_v1 *t) { t->temperature = 60 + 5 * index_of(device); return SUCCESS; }
int nvmlDeviceGetTemperature(void *device, unsigned int sensor, unsigned int *c) {
    (void)sensor; *c = 60 + 5 * index_of(device); return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *device, unsigned int kind, unsigned int *mhz) {
    (void)kind; *mhz = 1500 + 100 * index_of(device); return SUCCESS;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *bits) {
    *bits = index_of(device) == 1 ? (unsigned long long)setting("SHIM_THROTTLE", 1) : 1;
    return SUCCESS;
}
