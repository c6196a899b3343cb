/* The sums over one stretch of one tensor: each element is read once per pass. Included by _one_pass.c alone.
 *
 * The columns are defined in __init__.py. How accuracy and speed are had together, in blocks that stay in the
 * first-level cache:
 *   - sums that need no root or quotient are added up in double: squares of floats are exact there, none overflows;
 *   - the update and g/d need a root and a quotient, which in double make the whole pass twice as slow. They are taken
 *     in float where the block's own values prove that nothing can have been lost (`promising` before, `trusted`
 *     after), else in double.
 * Extremes are taken of the bit patterns: as integers they compare like the floats they are, and NaN needs no care.
 */
#ifndef STABKIT_SUMS_H
#define STABKIT_SUMS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#if __GNUC__ >= 12
#define WIDE "arch=x86-64-v3" /* AVX2 with fused multiply-add */
#else
#define WIDE "avx2"
#endif
#define WIDEST __attribute__((target_clones(WIDE, "default"))) /* chosen when loaded; one wheel fits all machines */
#else
#define WIDEST
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline)) /* a helper must be cloned along with its caller */
#else
#define INLINE static inline
#endif

enum { BLOCK = 1024 }; /* elements: six arrays of them fit the first-level cache */
enum { ABS_BITS = 0x7fffffff, INF_BITS = 0x7f800000 };

typedef struct { /* mirrored by cpu._ROW; an address of 0 is an absent tensor */
    uint64_t param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, before;
    uint8_t kinds[8]; /* of their elements, in this order: a Kind */
    int64_t size;
    double step_size; /* lr / (1 - beta1^t) */
    double decay;     /* lr * weight_decay where decoupled, else 0 */
    double bias;      /* 1 - beta2^t; 0 before the first step */
    double eps;
    double sign;      /* -1 where the optimizer maximizes, else 1 */
    double beta1;     /* decay of m; only `step` needs it */
} Row;

typedef struct { /* AFTER_COLUMNS, v not yet bias-corrected; then what tells the moment before the step */
    double g_sumsq, g_absmax, g_nonfinite, g_zeros, m_sumsq, v_sum, v_min, v_max, rms_sum, eps_count;
    double p_absmax, p_nonfinite, u_sumsq, u_absmax, dot, applied_sumsq;
    double w_sumsq, gm_dot; /* of p before the step with itself; of g with m */
} After;

typedef struct { double p_sumsq, dot, m_sumsq; } Before;

typedef struct { /* a stretch of one tensor */
    const Row *row;
    int64_t start, size;
    union { After after; Before before; } sums;
} Piece;

INLINE int32_t bits(float x) { int32_t b; memcpy(&b, &x, sizeof b); return b; }
INLINE float value(int32_t b) { float x; memcpy(&x, &b, sizeof x); return x; }
typedef enum { FLOAT32, BFLOAT16, FLOAT16 } Kind;
typedef enum { PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, OLD_PARAM, TENSORS } Which;
typedef struct { float of[TENSORS][BLOCK]; } Room; /* for a block of those that are not float32 */

INLINE float from_bfloat16(uint16_t h) { return value((int32_t)((uint32_t)h << 16)); }

INLINE float from_float16(uint16_t h) {
    const uint32_t size = h & 0x7fff, raise = size < 0x7c00 ? 0x38000000 : 0x70000000; /* the latter of Inf and NaN */
    const float whole = value((int32_t)((size << 13) + raise)), tiny = (float)(int32_t)size * 0x1p-24f;
    return value(bits(size < 0x400 ? tiny : whole) | (int32_t)((uint32_t)(h & 0x8000) << 16));
}

/* A block of one of a row's tensors as float32, exactly; NULL where there is none. */
INLINE const float *load(const Row *row, Which which, int64_t start, int64_t n, Room *room) {
    const uint64_t address = (&row->param)[which];
    float *into = room->of[which];
    if (!address) return NULL;
    if (row->kinds[which] == FLOAT32) return (const float *)(uintptr_t)address + start;
    const uint16_t *from = (const uint16_t *)(uintptr_t)address + start;
    if (row->kinds[which] == BFLOAT16) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) into[i] = from_bfloat16(from[i]);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) into[i] = from_float16(from[i]);
    }
    return into;
}

/* ---- before the step ------------------------------------------------------------------------------------------- */

INLINE Before sums_before(const float *p, const float *g, const float *m, int64_t n) {
    double pp = 0, gm = 0, mm = 0;
#pragma omp simd reduction(+ : pp, gm, mm)
    for (int64_t i = 0; i < n; i++) {
        pp += (double)p[i] * p[i];
        gm += (double)g[i] * m[i];
        mm += (double)m[i] * m[i];
    }
    return (Before){pp, gm, mm};
}

WIDEST static void measure_before(Piece *piece) {
    const Row *row = piece->row;
    Before *out = &piece->sums.before;
    Room room;
    for (int64_t o = piece->start, end = o + piece->size; o < end; o += BLOCK) {
        const int64_t n = end - o < BLOCK ? end - o : BLOCK;
        const float *p = load(row, PARAM, o, n, &room), *g = load(row, GRAD, o, n, &room), *m = load(row, EXP_AVG, o, n, &room);
        /* What is absent is stood in for by p, read anyway; its columns are dropped in the end. */
        Before sums = sums_before(p, g ? g : p, m ? m : p, n);
        out->p_sumsq += sums.p_sumsq, out->dot += sums.dot, out->m_sumsq += sums.m_sumsq;
    }
}

/* ---- after the step -------------------------------------------------------------------------------------------- */

typedef struct { int32_t high; int finite, g_zero, m_zero; } Range; /* of one block; high: the bits of its largest v */
typedef struct { const float *p, *g, *m, *v, *vmax, *before; int64_t n; } Block;
typedef struct { double rms, update, weight, dot, absmax; } Update;

/* The first float whose sqrt(v / bias) is not below 10 eps, found with the very test it replaces. */
static int32_t eps_limit(const Row *row) {
    float limit = (float)(100 * row->eps * row->eps * row->bias);
    if (!(row->bias > 0) || !(limit >= 0)) return 0;
    while (sqrt(limit / row->bias) < 10 * row->eps && bits(limit) < INF_BITS) limit = value(bits(limit) + 1);
    return bits(limit);
}

/* Extremes over finite elements, one at a time: only for blocks that hold NaN, Inf or a v below zero. */
static void careful_extremes(const Block *b, After *out) {
    for (int64_t i = 0; i < b->n; i++) {
        double g = fabs((double)b->g[i]), p = fabs((double)b->p[i]), v = b->v[i];
        if (g <= FLT_MAX) out->g_absmax = fmax(out->g_absmax, g); else out->g_nonfinite++;
        if (p <= FLT_MAX) out->p_absmax = fmax(out->p_absmax, p); else out->p_nonfinite++;
        if (fabs(v) <= FLT_MAX) { out->v_min = fmin(out->v_min, v); out->v_max = fmax(out->v_max, v); }
    }
}

INLINE Range plain_sums(const Block *block, int32_t limit, After *out) {
    const float *p = block->p, *g = block->g, *m = block->m, *v = block->v;
    double g_sumsq = 0, m_sumsq = 0, v_sum = 0, gm_dot = 0;
    int32_t g_max = 0, p_max = 0, v_max = INT32_MIN, v_min = INT32_MAX, zeros = 0, small = 0;
#pragma omp simd reduction(+ : g_sumsq, m_sumsq, v_sum, gm_dot, zeros, small) \
    reduction(max : g_max, p_max, v_max) reduction(min : v_min)
    for (int64_t i = 0; i < block->n; i++) {
        int32_t gb = bits(g[i]) & ABS_BITS, pb = bits(p[i]) & ABS_BITS, vb = bits(v[i]);
        g_sumsq += (double)g[i] * g[i];
        m_sumsq += (double)m[i] * m[i];
        gm_dot += (double)g[i] * m[i];
        v_sum += v[i];
        zeros += gb == 0;
        small += (vb > 0) & (vb < limit);
        g_max = gb > g_max ? gb : g_max;
        p_max = pb > p_max ? pb : p_max;
        v_max = vb > v_max ? vb : v_max;
        v_min = vb < v_min ? vb : v_min;
    }
    out->g_sumsq += g_sumsq, out->m_sumsq += m_sumsq, out->v_sum += v_sum, out->gm_dot += gm_dot;
    out->g_zeros += zeros, out->eps_count += small;
    int finite = g_max < INF_BITS && p_max < INF_BITS && v_max < INF_BITS && v_min >= 0;
    if (finite) {
        out->g_absmax = fmax(out->g_absmax, value(g_max));
        out->p_absmax = fmax(out->p_absmax, value(p_max));
        out->v_max = fmax(out->v_max, value(v_max));
        out->v_min = fmin(out->v_min, value(v_min));
    } else {
        careful_extremes(block, out);
    }
    return (Range){v_max, finite && m_sumsq <= DBL_MAX, g_sumsq == 0, m_sumsq == 0};
}

/* What needs d, the denominator the optimizer used; `weight` is the sum of squares of p before the step. */
INLINE Update update_double(const Block *b, const Row *row, int has_before) {
    const float *p = b->p, *g = b->g, *m = b->m, *v = b->vmax ? b->vmax : b->v, *before = b->before;
    double rms = 0, update = 0, weight = 0, dot = 0, absmax = 0;
    const double step = row->step_size, decay = row->decay, eps = row->eps, eps2 = eps * eps, keep = 1 - decay;
    const double bias = row->bias;
#pragma omp simd reduction(+ : rms, update, weight, dot) reduction(max : absmax)
    for (int64_t i = 0; i < b->n; i++) {
        double d2 = v[i] / bias, floor2 = d2 < eps2 ? eps2 : d2; /* a NaN passes through */
        double adam = step * m[i] / (sqrt(d2) + eps);
        double w = has_before ? before[i] : (p[i] + adam) / keep, u = adam + decay * w;
        double size = fabs(u) <= DBL_MAX ? fabs(u) : 0;
        rms += (double)g[i] * g[i] / floor2;
        update += u * u;
        weight += w * w;
        dot -= w * u;
        absmax = size > absmax ? size : absmax;
    }
    return (Update){rms, update, weight, dot, absmax};
}

INLINE Update update_float(const Block *b, const Row *row, int has_before) {
    const float *p = b->p, *g = b->g, *m = b->m, *v = b->vmax ? b->vmax : b->v, *before = b->before;
    float rms = 0, update = 0, weight = 0, dot = 0;
    int32_t absmax = 0;
    const float step = (float)row->step_size, decay = (float)row->decay, eps = (float)row->eps;
    const float root = (float)sqrt(1 / row->bias), grow = (float)(1 / (1 - row->decay));
#pragma omp simd reduction(+ : rms, update, weight, dot) reduction(max : absmax)
    for (int64_t i = 0; i < b->n; i++) {
        float d = sqrtf(v[i]) * root, sum = d + eps, floor = d > eps ? d : eps;
        float inverse = 1 / (sum * floor); /* one quotient serves both */
        float adam = step * m[i] * (floor * inverse), r = g[i] * (sum * inverse);
        float w = has_before ? before[i] : (p[i] + adam) * grow, u = adam + decay * w;
        int32_t size = bits(u) & ABS_BITS;
        rms += r * r;
        update += u * u;
        weight += w * w;
        dot -= w * u;
        absmax = size > absmax ? size : absmax;
    }
    return (Update){rms, update, weight, dot, value(absmax)};
}

/* Whether a block is worth trying in float. The square of d is the divisor of the one quotient: were it to overflow,
 * an element would silently become 0. Were it denormal, the quotient is Inf, which shows in the sums like all else. */
INLINE int promising(const Row *row, Range range) {
    double highest = sqrt(value(range.high) / row->bias);
    return range.finite && highest < 1e17 && (row->step_size == 0 || row->step_size > 1e-25);
}

/* Whether float lost nothing, judged by what came out. A sum of squares of at least 1e-25 has lost at most BLOCK times
 * 1e-38 to underflow, and its largest element went through no denormal; NaN and Inf fail every comparison. Without a
 * snapshot an update larger than the weights would cancel in p + adam. */
INLINE int trusted(Update u, int has_before, int g_zero, int u_zero) {
    return (g_zero || u.rms > 1e-25) && u.rms < 1e30 && (u_zero || u.update > 1e-25) && u.update < 1e30 &&
           u.weight > 1e-25 && u.weight < 1e30 && (has_before || u.update <= u.weight);
}

/* Under amsgrad d comes from another array than v: its extremes, NaN and values below zero making it unfit. */
INLINE void widen(Range *range, const float *vmax, int64_t n) {
    int32_t high = INT32_MIN, low = INT32_MAX;
#pragma omp simd reduction(max : high) reduction(min : low)
    for (int64_t i = 0; i < n; i++) {
        int32_t b = bits(vmax[i]);
        high = b > high ? b : high;
        low = b < low ? b : low;
    }
    range->high = high, range->finite &= high < INF_BITS && low >= 0;
}

INLINE double applied_sumsq(const float *p, const float *before, int64_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        double moved = (double)p[i] - before[i];
        sum += moved * moved;
    }
    return sum;
}

WIDEST static void measure_after(Piece *piece) {
    const Row *row = piece->row;
    After *out = &piece->sums.after;
    const int32_t limit = eps_limit(row);
    const int still = row->step_size == 0, decays = row->decay != 0, has_before = row->before != 0;
    Room room;
    out->v_min = INFINITY, out->v_max = -INFINITY;
    for (int64_t o = piece->start, end = o + piece->size; o < end; o += BLOCK) {
        const int64_t n = end - o < BLOCK ? end - o : BLOCK;
        Block b = {load(row, PARAM, o, n, &room),      load(row, GRAD, o, n, &room),           load(row, EXP_AVG, o, n, &room),
                   load(row, EXP_AVG_SQ, o, n, &room), load(row, MAX_EXP_AVG_SQ, o, n, &room), load(row, OLD_PARAM, o, n, &room), n};
        Range range = plain_sums(&b, limit, out);
        if (b.before) out->applied_sumsq += applied_sumsq(b.p, b.before, b.n);
        if (!(row->bias > 0)) continue; /* before the first step there is no update */
        if (b.vmax) widen(&range, b.vmax, b.n);
        Update u;
        int done = 0;
        if (promising(row, range)) {
            u = has_before ? update_float(&b, row, 1) : update_float(&b, row, 0);
            done = trusted(u, has_before, range.g_zero, (still || range.m_zero) && !decays);
        }
        if (!done) u = has_before ? update_double(&b, row, 1) : update_double(&b, row, 0);
        out->rms_sum += u.rms, out->u_sumsq += u.update, out->dot += u.dot, out->w_sumsq += u.weight;
        out->u_absmax = fmax(out->u_absmax, u.absmax);
    }
}

#endif
