/* One call measures all tensors of 32 or 16 bits of an optimizer step; no torch headers, only addresses.
 *
 * Python hands over packed Rows, one per tensor, and gets one line of float64 columns per Row back. Tensors are cut
 * into pieces of fixed length that are added up in their order, so the result does not depend on the number of threads.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

#include "_sums.h"
#include "_tensors.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define THREADS 1
#endif

enum { PIECE = 64 * BLOCK, SUMS = sizeof(After) / sizeof(double), MAX_THREADS = 2 };
enum { EARLY = sizeof(Before) / sizeof(double), LATE = SUMS - 2 }; /* columns before the step and after it */
typedef enum { BEFORE, AFTER, STEP } Pass;
enum { ALONE_BELOW = 4 * PIECE }; /* elements; starting a thread costs more than they do */

static void add_before(Before *line, const Before *sums) {
    line->p_sumsq += sums->p_sumsq, line->dot += sums->dot, line->m_sumsq += sums->m_sumsq;
}

static void finish_before(Before *line, const Row *row) {
    line->dot = row->grad && row->exp_avg ? row->sign * line->dot : NAN;
    if (!row->exp_avg) line->m_sumsq = NAN;
}

static void add_after(After *line, const After *sums) {
    const double *from = (const double *)sums;
    double *to = (double *)line;
    After extremes = *line;
    for (int i = 0; i < SUMS; i++) to[i] += from[i];
    line->g_absmax = fmax(extremes.g_absmax, sums->g_absmax), line->p_absmax = fmax(extremes.p_absmax, sums->p_absmax);
    line->u_absmax = fmax(extremes.u_absmax, sums->u_absmax);
    line->v_min = fmin(extremes.v_min, sums->v_min), line->v_max = fmax(extremes.v_max, sums->v_max);
}

static void finish_after(After *line, const Row *row) {
    const double bias = row->bias > 0 ? row->bias : NAN; /* NaN wherever v-hat enters, before the first step */
    const int none = line->v_min > line->v_max;
    line->v_sum /= bias, line->v_min = none ? NAN : line->v_min / bias, line->v_max = none ? NAN : line->v_max / bias;
    if (isnan(bias)) line->rms_sum = line->eps_count = line->u_sumsq = line->u_absmax = line->dot = NAN;
    if (!row->before) line->applied_sumsq = NAN;
}

/* What was before the step, from what is after it: m = beta1 m_before + (1 - beta1) g. Where g outweighs m_before some
 * thousandfold, rounding has left too little of that in m. Where all is zero, all was. */
static void work_back(Before *line, const After *sums, const Row *row) {
    const double kept = row->beta1, taken = 1 - kept, g = taken * taken * sums->g_sumsq, gm = row->sign * sums->gm_dot;
    const double largest = fmax(sums->m_sumsq, g), m = (sums->m_sumsq - 2 * taken * gm + g) / (kept * kept);
    const int known = largest == 0 || largest <= 1e5 * kept * kept * m;
    line->p_sumsq = row->bias > 0 ? sums->w_sumsq : NAN;
    line->m_sumsq = known ? m : NAN;
    line->dot = known ? (gm - taken * sums->g_sumsq) / kept : NAN;
}

typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
typedef struct { Piece *pieces; int64_t count, next; Pass pass; } Job;

static void *work(void *argument) {
    Job *job = argument;
    for (;;) {
#if defined(THREADS)
        int64_t i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
#else
        int64_t i = job->next++;
#endif
        if (i >= job->count) return NULL;
        if (job->pass == BEFORE) measure_before(&job->pieces[i]); else measure_after(&job->pieces[i]);
    }
}

static void work_in_team(void *argument) { work(argument); }

/* In torch's team where there is one (see team.py). Threads of our own live no longer than the call: one that waits
 * between calls would be lost in a forked child. */
static void work_together(Job *job, int threads, Team team) {
    if (team && threads > 1) {
        team(work_in_team, job, (unsigned)threads, 0);
        return;
    }
    if (threads > MAX_THREADS) threads = MAX_THREADS;
#if defined(THREADS)
    pthread_t helpers[MAX_THREADS];
    int started = 0;
    while (started < threads - 1 && pthread_create(&helpers[started], NULL, work, job) == 0) started++;
    work(job);
    while (started > 0) pthread_join(helpers[--started], NULL);
#else
    (void)threads, work(job);
#endif
}

static void finish_row(double *out, const Row *row, const Piece *pieces, int64_t count, Pass pass) {
    if (pass == BEFORE) {
        Before *line = (Before *)out;
        *line = (Before){0, 0, 0};
        for (int64_t i = 0; i < count; i++) add_before(line, &pieces[i].sums.before);
        finish_before(line, row);
        return;
    }
    After sums = {0};
    sums.v_min = INFINITY, sums.v_max = -INFINITY;
    for (int64_t i = 0; i < count; i++) add_after(&sums, &pieces[i].sums.after);
    if (pass == STEP) work_back((Before *)out, &sums, row);
    finish_after(&sums, row);
    memcpy(out + (pass == STEP ? EARLY : 0), &sums, LATE * sizeof(double));
}

/* Cuts the tensors into pieces, has them measured and adds them up in their order. Returns 0 where memory ran out. */
static int measure(const Row *rows, int64_t count, double *out, Pass pass, int threads, Team team) {
    int64_t pieces = 0, elements = 0, next = 0, width = pass == BEFORE ? EARLY : pass == AFTER ? LATE : EARLY + LATE;
    for (int64_t r = 0; r < count; r++) pieces += (rows[r].size + PIECE - 1) / PIECE, elements += rows[r].size;
    Job job = {calloc(pieces + 1, sizeof(Piece)), pieces, 0, pass};
    if (!job.pieces) return 0;
    for (int64_t r = 0; r < count; r++)
        for (int64_t o = 0; o < rows[r].size; o += PIECE, next++) {
            Piece *piece = &job.pieces[next];
            piece->row = &rows[r], piece->start = o, piece->size = rows[r].size - o < PIECE ? rows[r].size - o : PIECE;
        }
    work_together(&job, elements < ALONE_BELOW ? 1 : threads, team);
    next = 0;
    for (int64_t r = 0; r < count; r++) {
        int64_t own = (rows[r].size + PIECE - 1) / PIECE;
        finish_row(out + r * width, &rows[r], job.pieces + next, own, pass);
        next += own;
    }
    free(job.pieces);
    return 1;
}

static PyObject *call(PyObject *arguments, Pass pass) {
    const char *rows;
    Py_ssize_t bytes;
    unsigned long long out, team;
    int threads, ok;
    if (!PyArg_ParseTuple(arguments, "y#KiK", &rows, &bytes, &out, &threads, &team)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    ok = measure((const Row *)rows, bytes / (Py_ssize_t)sizeof(Row), (double *)(uintptr_t)out, pass, threads,
                 (Team)(uintptr_t)team);
    Py_END_ALLOW_THREADS
    if (!ok) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_before(PyObject *self, PyObject *arguments) { (void)self; return call(arguments, BEFORE); }
static PyObject *py_after(PyObject *self, PyObject *arguments) { (void)self; return call(arguments, AFTER); }
static PyObject *py_step(PyObject *self, PyObject *arguments) { (void)self; return call(arguments, STEP); }
static int execute(PyObject *module) { return PyModule_AddIntConstant(module, "ROW_BYTES", sizeof(Row)); }

static PyMethodDef methods[] = {
    {"before", py_before, METH_VARARGS, "before(rows, out, threads, team): fill float64 [rows, 3] at address out."},
    {"after", py_after, METH_VARARGS, "after(rows, out, threads, team): fill float64 [rows, 16] at address out."},
    {"step", py_step, METH_VARARGS, "step(rows, out, threads, team): fill float64 [rows, 19], both, from what is after it."},
    {"bind", bind, METH_VARARGS, "bind(capsule, Tensor, Parameter): whether the four below can be used."},
    {"same", py_same, METH_VARARGS, "same(groups, parameters, trainable): whether nothing has changed; None: Python must look."},
    {"signatures", py_signatures, METH_O, "signatures(parameters): (id, version) of each gradient, int64 [n, 2]."},
    {"counts", py_counts, METH_VARARGS, "counts(parameters, state, out): fill float64 [n] at address out."},
    {"look", py_look, METH_VARARGS, "look(parameters, state, names, rows, signatures, counts, held): find them."},
    {NULL, NULL, 0, NULL},
};
static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_one_pass", "Sums over tensors; see stabkit.hooks.statistics.cpu.", 0, methods,
    slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__one_pass(void) { return PyModuleDef_Init(&definition); }
