# A process that holds glmnet and one problem, and times it on demand: the protocol of fit_worker.py.
#   Rscript fit_glmnet.R "glmnet" FOLDER        solvers: glmnet, glmnet cov, glmnet cv, glmnet cov cv
arguments <- commandArgs(trailingOnly = TRUE)
solver <- arguments[1]
folder <- arguments[2]
started <- proc.time()[["elapsed"]]
suppressMessages(library(glmnet))
suppressMessages(library(Matrix))
imported <- proc.time()[["elapsed"]] - started

numbers <- function(name) {  # an .npy file is a header, whose length stands in its bytes 9 and 10, and raw values
  path <- file.path(folder, paste0(name, ".npy"))
  connection <- file(path, "rb")
  on.exit(close(connection))
  start <- readBin(connection, "raw", 10)
  header <- rawToChar(readBin(connection, "raw", as.integer(start[9]) + 256L * as.integer(start[10])))
  count <- (file.size(path) - 10 - nchar(header, "bytes"))
  if (grepl("<i4", header)) return(readBin(connection, "integer", count / 4, size = 4))
  if (grepl("<i8", header)) return(readBin(connection, "integer", count / 4, size = 4)[c(TRUE, FALSE)])
  readBin(connection, "double", count / 8)
}

text <- paste(readLines(file.path(folder, "problem.json"), warn = FALSE), collapse = "")
value <- function(key) sub(paste0(".*\"", key, "\": \"?([A-Za-z0-9.]+).*"), "\\1", text)
intercept <- value("intercept") == "true"
n <- as.integer(value("n"))
p <- as.integer(value("p"))
loss <- value("loss")
alphas <- numbers("alphas")
y <- numbers("y")
if (file.exists(file.path(folder, "X.npy"))) {
  X <- matrix(numbers("X"), n, p)
} else {
  X <- new("dgCMatrix", i = numbers("X_indices"), p = numbers("X_indptr"), x = numbers("X_data"), Dim = c(n, p))
}
family <- c(quadratic = "gaussian", logistic = "binomial", multinomial = "multinomial")[[loss]]
type <- if (grepl("cov", solver)) "covariance" else "naive"
glmnet.control(fdev = 0, devmax = 1, mnlam = 1000)  # no early end of the path

fit <- function(tol) {
  if (value("group") != "1") stop("no group lasso")
  options <- list(X, y, family = family, lambda = alphas, thresh = tol, standardize = FALSE, intercept = intercept,
                  maxit = 1e9, type.gaussian = type)
  if (!grepl("cv", solver)) return(do.call(glmnet, options))
  do.call(cv.glmnet, c(options, list(foldid = numbers("folds") + 1L, keep = TRUE)))
}

triplets <- function(found) {  # (alpha, place, value), counted from 0
  if (grepl("cv", solver)) {  # kept predictions give the loss of each fold
    folds <- numbers("folds")
    squares <- (found$fit.preval[, seq_along(alphas)] - y)^2
    losses <- sapply(sort(unique(folds)), function(k) colMeans(squares[folds == k, , drop = FALSE]))
    return(list(row = as.vector(row(losses)) - 1L, col = as.vector(col(losses)) - 1L, value = as.vector(losses)))
  }
  if (length(found$lambda) != length(alphas)) stop("path cut short at ", length(found$lambda), " alphas: ", found$jerr)
  parts <- if (is.list(found$beta)) found$beta else list(found$beta)
  pieces <- lapply(seq_along(parts), function(k) {
    beta <- as(parts[[k]], "TsparseMatrix")
    list(row = beta@j, col = beta@i * length(parts) + k - 1L, value = beta@x)
  })
  constants <- matrix(found$a0, length(parts))  # K rows, a column for each alpha
  pieces <- c(pieces, list(list(row = as.vector(col(constants)) - 1L,
                                col = p * length(parts) + as.vector(row(constants)) - 1L, value = as.vector(constants))))
  lapply(c(row = "row", col = "col", value = "value"), function(key) unlist(lapply(pieces, `[[`, key)))
}

write <- function(found) {
  stem <- file.path(folder, paste0("out-", gsub(" ", "-", solver)))
  parts <- triplets(found)
  writeBin(as.integer(parts$row), paste0(stem, ".row"))
  writeBin(as.integer(parts$col), paste0(stem, ".col"))
  writeBin(as.double(parts$value), paste0(stem, ".value"))
}

say <- function(...) cat(..., "\n", file = stdout())
libraries <- gsub("[\"\\\\]", "", paste("BLAS", extSoftVersion()[["BLAS"]], R.version.string))
say(sprintf("ready {\"library\": \"glmnet\", \"version\": \"%s\", \"import_seconds\": %.3f, \"blas\": [\"%s\"]}",
            as.character(packageVersion("glmnet")), imported, libraries))
input <- file("stdin", "r")
while (length(line <- readLines(input, 1)) == 1) {
  order <- strsplit(trimws(line), " ")[[1]]
  answer <- tryCatch({
    taken <- system.time(found <- fit(as.numeric(order[1])))
    if (order[2] == "1") write(found)
    paste("ok", taken[["elapsed"]], taken[["user.self"]] + taken[["sys.self"]])
  }, error = function(e) paste("error", gsub("\n", " ", conditionMessage(e))))
  say(answer)
  flush(stdout())
}
